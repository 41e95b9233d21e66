//! What suites for block devices try on any of them, tried on owned ones: I/O of every kind, the device's
//! ends, partitions, queue settings, several users, devices that come and go.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{exporting, memory};
use crate::Result;
use crate::cluster::{Lab, wait_export};
use crate::machine::Machine;

/// The device that most cases use, MiB.
const DISK_MIB: u32 = 32;
/// How often a device is allocated and released in a row.
const ROUNDS: u32 = 20;
/// What the kernel's log must not have.
const COMPLAINTS: &str = "I/O error|lost async page write|EXT4-fs error|EXT4-fs warning|WARNING:|BUG:|Oops|blocked for more than";

/// One case, on the host; `d1` is its disk, `d2` one that comes and goes, `d3` cannot be written.
type Case = fn(&Machine) -> Result<()>;

/// All of them, in the order in which they are tried. The last ones make devices go away.
const CASES: &[(&str, Case)] = &[
    ("mixed sizes, deep, verified", mixed_sizes),
    ("trim and write, verified", trim_and_write),
    ("direct beside buffered I/O", direct_and_buffered),
    ("zeroed and discarded ranges", zeroes),
    ("the last block, and beyond", end_of_device),
    ("partitions read again under I/O", partitions),
    ("queue settings under I/O", queue_settings),
    ("attributes read under I/O", attributes),
    ("two openers", two_openers),
    ("exclusive users", exclusive_users),
    ("a device that is read-only", read_only),
    ("flushes of a filesystem", flushes),
    ("a filesystem that is full", full_filesystem),
    ("come and gone again and again", come_and_go),
    ("the kernel's log", no_complaints),
    ("taken by force under I/O", taken_by_force),
];

pub(super) fn cases(lab: &Lab, backend: &str) -> Result<()> {
    let read_only = memory(3, "d3", 8) + "read_only = true\n";
    lab.daemons(
        &(memory(1, "d1", DISK_MIB) + &memory(2, "d2", 16) + &read_only),
        &exporting(backend),
    )?;
    lab.share_parents()?;
    let a = &lab.a;
    a.sh("mount -t debugfs debugfs /sys/kernel/debug; echo 60 >/proc/sys/kernel/hung_task_timeout_secs")?;
    for name in ["d1", "d2", "d3"] {
        a.sh(&format!("rma allocate {name} --to a"))?;
        let export = wait_export(a, name)?;
        if export["backend"] != backend {
            return Err(format!("not by {backend}: {export}").into());
        }
        let node = format!("[ -b /dev/rma/by-name/{name} ]");
        a.wait_sh(10, "the name", &node)?;
    }
    let mut failed = Vec::new();
    for (name, case) in CASES {
        let begun = Instant::now();
        let result = case(a);
        let word = if result.is_ok() { "pass" } else { "FAIL" };
        let seconds = begun.elapsed().as_secs_f64();
        println!("    {name:<33} {word} {seconds:6.1} s");
        if let Err(error) = result {
            failed.push(format!("{name}: {error}"));
            // What it has left is not to fail the next.
            let _ =
                a.sh("killall fio; swapoff -a; umount /mnt/x /mnt/y; rm -f /tmp/enough /tmp/io; [ -b /dev/rma/by-name/d1 ] || rma allocate d1 --to a");
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(failed.join("\n").into())
}

const D1: &str = "/dev/rma/by-name/d1";

/// Random I/O past the page cache with many requests under way, each block verified.
fn fio(name: &str, rest: &str) -> String {
    format!(
        "fio --name={name} --filename={D1} --direct=1 --ioengine=libaio --iodepth=32 --verify_fatal=1 \
         --output=/tmp/fio-{name}.log {rest}"
    )
}

/// Has verified I/O in the upper half of the disk go on until `/tmp/enough` is there; `/tmp/io` says how it
/// ended.
fn begin_io(a: &Machine) -> Result<()> {
    let io = fio(
        "beside",
        "--rw=randwrite --bsrange=4k-32k --offset=16m --size=2m --verify=crc32c",
    );
    a.sh(&format!(
        "rm -f /tmp/enough /tmp/io /tmp/rounds; (while [ ! -e /tmp/enough ]; do {io} || {{ echo failed >/tmp/io; exit; }}; \
         echo >>/tmp/rounds; done; echo good >/tmp/io) </dev/null >/dev/null 2>&1 &"
    ))?;
    Ok(())
}

/// The I/O of [`begin_io`] has gone on meanwhile, and ends well.
fn end_io(a: &Machine) -> Result<()> {
    a.wait_sh(
        180,
        "a round of I/O",
        "[ -s /tmp/rounds ] || [ -e /tmp/io ]",
    )?;
    a.sh("touch /tmp/enough")?;
    a.wait_sh(180, "the end of the I/O", "[ -s /tmp/io ]")?;
    a.sh("grep -qx good /tmp/io || { cat /tmp/fio-beside.log; exit 1; }")?;
    Ok(())
}

fn mixed_sizes(a: &Machine) -> Result<()> {
    let each = [
        "--rw=randwrite --bsrange=512-128k --blockalign=512 --size=24m --verify=crc32c",
        "--rw=randrw --bssplit=4k/50:64k/30:1m/20 --size=24m --verify=sha1 --verify_backlog=64",
    ];
    for (number, rest) in each.into_iter().enumerate() {
        a.sh_within(180, &fio(&format!("mixed{number}"), rest))?;
    }
    Ok(())
}

fn trim_and_write(a: &Machine) -> Result<()> {
    // Each block is discarded, then written.
    let rest = "--rw=trimwrite --bs=64k --size=16m --verify=crc32c";
    a.sh_within(180, &fio("trimwrite", rest))?;
    // What is discarded last reads as zeros; what is behind it stays.
    a.sh_within(180, &fio("trim", "--rw=randtrim --bs=16k --size=8m"))?;
    a.sh(&format!(
        "[ $(dd if={D1} bs=1M count=8 iflag=direct 2>/dev/null | tr -d '\\000' | wc -c) = 0 ] && \
         [ $(dd if={D1} bs=1M skip=8 count=8 iflag=direct 2>/dev/null | tr -d '\\000' | wc -c) != 0 ]"
    ))?;
    Ok(())
}

fn direct_and_buffered(a: &Machine) -> Result<()> {
    let direct = fio("direct", "--rw=randwrite --bs=8k --size=8m --verify=crc32c");
    let buffered = fio(
        "buffered",
        "--rw=randwrite --bs=8k --offset=8m --size=8m --verify=crc32c --direct=0 --ioengine=psync --end_fsync=1",
    );
    a.sh_within(
        180,
        &format!("{direct} & first=$!; {buffered} && wait $first"),
    )?;
    // What one way has written the other reads.
    a.sh(&format!(
        "set -e; dd if=/dev/urandom of=/tmp/one bs=1M count=2 2>/dev/null; dd if=/dev/urandom of=/tmp/two bs=1M count=2 2>/dev/null
         cmp -n 2097152 {D1} /tmp/one && exit 1; dd if=/tmp/one of={D1} bs=64k oflag=direct conv=notrunc 2>/dev/null; cmp -n 2097152 {D1} /tmp/one
         dd if=/tmp/two of={D1} bs=64k conv=notrunc,fsync 2>/dev/null
         dd if={D1} bs=64k count=32 iflag=direct 2>/dev/null | cmp - /tmp/two; rm /tmp/one /tmp/two"
    ))?;
    Ok(())
}

fn zeroes(a: &Machine) -> Result<()> {
    for how in [
        "/opt/bin/blkdiscard -f -o $at -l $len",
        "/opt/bin/blkdiscard -f -z -o $at -l $len",
        "/opt/bin/fallocate -z -o $at -l $len",
        "/opt/bin/fallocate -p -o $at -l $len",
    ] {
        // In the middle, of odd size, at both ends; what is beside it stays.
        let script = format!(
            "set -e; disk=$(readlink -f {D1}); bytes=$(blockdev --getsize64 $disk); for range in '1048576 2097152' '4096 12288' '0 4096' '33550336 4096'; do
             set -- $range; at=$1; len=$2; from=$((at < 4096 ? 0 : at - 4096)); before=$((at - from)); to=$((at + len + 4096)); [ $to -le $bytes ] || to=$bytes
             tr '\\000' x </dev/zero 2>/dev/null | dd of=$disk bs=4096 seek=$((from / 4096)) count=$(((to - from) / 4096)) iflag=fullblock conv=notrunc,fsync 2>/dev/null
             {how} $disk; echo 3 >/proc/sys/vm/drop_caches
             [ $(dd if=$disk bs=4096 skip=$((at / 4096)) count=$((len / 4096)) 2>/dev/null | tr -d '\\000' | wc -c) = 0 ]
             [ $(dd if=$disk bs=4096 skip=$((from / 4096)) count=$((before / 4096)) 2>/dev/null | tr -d x | wc -c) = 0 ]
             [ $(dd if=$disk bs=4096 skip=$(((at + len) / 4096)) count=1 2>/dev/null | tr -d x | wc -c) = 0 ]; done"
        );
        a.sh_within(180, &script)?;
    }
    Ok(())
}

fn end_of_device(a: &Machine) -> Result<()> {
    // The last block of 512 bytes can be written and read; of what begins before the end and goes beyond,
    // the part that fits; of what begins at the end, nothing.
    for (of, conv) in [(" oflag=direct", "notrunc"), ("", "notrunc,fsync")] {
        a.sh(&format!(
            "set -e; sectors=$(blockdev --getsz {D1}); [ $sectors = $(({DISK_MIB} * 2048)) ]; last=$((sectors - 1))
             dd if=/dev/urandom of=/tmp/last bs=512 count=1 2>/dev/null; dd if=/tmp/last of={D1} bs=512 seek=$last{of} conv={conv} 2>/dev/null
             dd if={D1} bs=512 skip=$last iflag=direct 2>/dev/null | cmp - /tmp/last
             dd if=/dev/zero of={D1} bs=512 seek=$sectors count=1{of} conv={conv} 2>/tmp/said && exit 3; grep -q 'No space left' /tmp/said
             dd if=/dev/zero of={D1} bs=4096 seek=$((sectors / 8 - 1)) count=2{of} conv={conv} 2>/tmp/said && exit 4; grep -q 'No space left' /tmp/said
             [ $(dd if={D1} bs=512 skip=$last 2>/dev/null | tr -d '\\000' | wc -c) = 0 ]
             [ $(dd if={D1} bs=512 skip=$sectors count=1 iflag=direct 2>/dev/null | wc -c) = 0 ]
             [ $(dd if={D1} bs=1M skip=$(({DISK_MIB} - 1)) count=8 iflag=direct 2>/dev/null | wc -c) = 1048576 ]; rm /tmp/last"
        ))?;
    }
    a.sh(&format!(
        "beyond=$(({DISK_MIB} * 1048576 + 4096)); /opt/bin/blkdiscard -f -o $beyond -l 4096 {D1} 2>/dev/null && exit 3; \
         /opt/bin/fallocate -z -o $beyond -l 4096 {D1} 2>/dev/null && exit 4; true"
    ))?;
    Ok(())
}

fn partitions(a: &Machine) -> Result<()> {
    a.sh(&format!(
        "printf 'o\\nn\\np\\n1\\n\\n+4M\\nn\\np\\n2\\n\\n+4M\\nw\\n' | fdisk $(readlink -f {D1}) >/tmp/fdisk.log 2>&1; udevadm settle --timeout=20"
    ))?;
    begin_io(a)?;
    // Udev looks at partitions meanwhile; while it does, they cannot be read again.
    a.sh_within(
        120,
        &format!(
            "disk=$(readlink -f {D1}); read=0; for i in $(seq 30); do blockdev --rereadpt $disk 2>/tmp/said && read=$((read + 1)); \
             grep -vi busy /tmp/said && exit 1; busybox usleep 50000; done; [ $read -ge 10 ] || {{ echo only $read; exit 1; }}"
        ),
    )?;
    a.sh("udevadm settle --timeout=30")?;
    for part in [1, 2] {
        a.wait_sh(
            10,
            "the partition",
            &format!("[ {D1}-part{part} -ef $(readlink -f {D1})p{part} ] && [ $(blockdev --getsize64 {D1}-part{part}) = 4194304 ]"),
        )?;
    }
    end_io(a)?;
    a.sh(&format!(
        "dd if=/dev/zero of={D1} bs=4k count=1 conv=notrunc,fsync 2>/dev/null; udevadm settle --timeout=20; blockdev --rereadpt {D1}; udevadm settle --timeout=20"
    ))?;
    a.wait_sh(
        10,
        "the partitions to be gone",
        &format!("! ls {D1}-part* 2>/dev/null | grep -q ."),
    )?;
    Ok(())
}

fn queue_settings(a: &Machine) -> Result<()> {
    a.sh("for module in mq-deadline kyber-iosched bfq; do modprobe $module || exit 1; done")?;
    begin_io(a)?;
    a.sh_within(
        120,
        &format!(
            "set -e; node=$(readlink -f {D1}); queue=/sys/block/${{node##*/}}/queue; before=$(sed 's/.*\\[\\(.*\\)\\].*/\\1/' $queue/scheduler)
             for i in 1 2; do for scheduler in mq-deadline kyber bfq none; do echo $scheduler >$queue/scheduler; grep -q \"\\[$scheduler\\]\" $queue/scheduler
             for count in 4 64 128; do echo $count >$queue/nr_requests; done
             for kb in 0 4096 128; do echo $kb >$queue/read_ahead_kb; done
             for max in 64 512; do echo $max >$queue/max_sectors_kb; done; done; done; echo $before >$queue/scheduler"
        ),
    )?;
    end_io(a)
}

fn attributes(a: &Machine) -> Result<()> {
    begin_io(a)?;
    let read = a.sh_within(
        120,
        &format!(
            "node=$(readlink -f {D1}); name=${{node##*/}}; for i in 1 2 3; do \
             find /sys/block/$name/ /sys/kernel/debug/block/$name/ -type f -perm -400 | while read -r file; do cat $file >/dev/null 2>&1; echo $file; done; done | sort -u | wc -l"
        ),
    )?;
    if read.trim().parse::<u32>()? < 50 {
        return Err(format!("only {read} attributes").into());
    }
    end_io(a)
}

fn two_openers(a: &Machine) -> Result<()> {
    // Both have it open from the first moment.
    let mut both = format!("exec 3<{D1}");
    for (name, offset) in [("one", 0), ("two", 8)] {
        let rest = format!(
            "--rw=randrw --bs=4k --offset={offset}m --size=8m --verify=crc32c --time_based --runtime=10"
        );
        both += &format!("\n{} </dev/null >/dev/null 2>&1 &", fio(name, &rest));
    }
    a.sh(&both)?;
    let refused = a.sh_fails("rma release d1")?;
    let openers = refused.split("open by ").skip(1);
    let named: BTreeSet<&str> = openers
        .filter_map(|rest| Some(rest.split_once('(')?.1.split_once(')')?.0))
        .collect();
    if named.len() < 2 || !refused.contains("--force") {
        return Err(format!("not both named, or not said what to do: {refused}").into());
    }
    a.wait_sh(120, "their end", "! pidof fio >/dev/null")?;
    a.sh("grep -q 'err= 0' /tmp/fio-one.log && grep -q 'err= 0' /tmp/fio-two.log")?;
    Ok(())
}

fn exclusive_users(a: &Machine) -> Result<()> {
    a.sh(&format!(
        "set -e; disk=$(readlink -f {D1}); mkdir -p /mnt/x; mkswap $disk >/dev/null; swapon $disk
         /sbin/mke2fs -q -t ext4 $disk 2>/dev/null && exit 3; mount -t ext4 $disk /mnt/x 2>/dev/null && exit 4
         rma release d1 2>/tmp/said && exit 5; grep -q 'swap on' /tmp/said; swapoff $disk
         /sbin/mke2fs -q -F -t ext4 $disk; mount -t ext4 $disk /mnt/x; swapon $disk 2>/dev/null && exit 6
         /sbin/mke2fs -q -t ext4 $disk 2>/dev/null && exit 7; rma release d1 2>/tmp/said && exit 8; grep -q 'mounted at /mnt/x' /tmp/said
         /opt/bin/blkdiscard $disk 2>/dev/null && exit 9; umount /mnt/x; /sbin/e2fsck -f -n $disk"
    ))?;
    Ok(())
}

fn read_only(a: &Machine) -> Result<()> {
    a.sh("set -e; disk=$(readlink -f /dev/rma/by-name/d3); [ $(blockdev --getro $disk) = 1 ]; [ $(cat /sys/block/${disk##*/}/ro) = 1 ]
          dd if=/dev/zero of=$disk bs=4k count=1 conv=notrunc 2>/dev/null && exit 3
          dd if=/dev/zero of=$disk bs=4k count=1 oflag=direct conv=notrunc 2>/dev/null && exit 4
          /opt/bin/blkdiscard -f $disk 2>/dev/null && exit 5; /opt/bin/blkdiscard -f -z $disk 2>/dev/null && exit 6
          /sbin/mke2fs -q -F -t ext4 $disk >/dev/null 2>&1 && exit 7
          blockdev --setrw $disk 2>/dev/null && dd if=/dev/zero of=$disk bs=4k count=1 oflag=direct conv=notrunc 2>/dev/null && exit 8
          [ $(dd if=$disk bs=1M iflag=direct 2>/dev/null | tr -d '\\000' | wc -c) = 0 ]; [ $(dd if=$disk bs=1M iflag=direct 2>/dev/null | wc -c) = 8388608 ]")?;
    Ok(())
}

/// Flushes, discards and write-zeroes of `d1` so far.
fn others_done(a: &Machine) -> Result<u64> {
    let text = a.sh("rma -o json devices --stats")?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let devices = value["devices"].as_array().cloned().unwrap_or_default();
    let device = devices.into_iter().find(|device| device["name"] == "d1");
    let count = device.and_then(|device| device["others"]["ios"].as_u64());
    count.ok_or_else(|| format!("no statistics of d1: {text}").into())
}

fn flushes(a: &Machine) -> Result<()> {
    a.sh(&format!("set -e; mkdir -p /mnt/x; /sbin/mke2fs -q -F -t ext4 {D1}; mount -t ext4 -o barrier=1 {D1} /mnt/x; grep -q 'write back' /sys/block/$(basename $(readlink -f {D1}))/queue/write_cache"))?;
    let before = others_done(a)?;
    a.sh("for i in $(seq 10); do dd if=/dev/urandom of=/mnt/x/$i bs=4k count=3 conv=fsync 2>/dev/null || exit 1; done")?;
    let after = others_done(a)?;
    a.sh(&format!("umount /mnt/x && /sbin/e2fsck -f -n {D1}"))?;
    if after < before + 10 {
        return Err(format!("10 files synced, {before} flushes before and {after} after").into());
    }
    Ok(())
}

fn full_filesystem(a: &Machine) -> Result<()> {
    a.sh_within(
        120,
        &format!(
            "set -e; mkdir -p /mnt/x; /sbin/mke2fs -q -F -t ext4 -m 0 {D1}; mount -t ext4 -o errors=remount-ro {D1} /mnt/x
             dd if=/dev/urandom of=/mnt/x/first bs=64k count=100 conv=fsync 2>/dev/null; sum=$(md5sum </mnt/x/first)
             dd if=/dev/zero of=/mnt/x/rest bs=64k 2>/tmp/said && exit 3; grep -q 'No space left' /tmp/said
             while echo more >>/mnt/x/small; do :; done 2>/tmp/said; grep -q 'No space left' /tmp/said; sync
             [ \"$sum\" = \"$(md5sum </mnt/x/first)\" ]; rm /mnt/x/rest; echo again >/mnt/x/again; sync; umount /mnt/x; /sbin/e2fsck -f -n {D1}
             mount -t ext4 {D1} /mnt/x; [ \"$sum\" = \"$(md5sum </mnt/x/first)\" ]; grep -qx again /mnt/x/again; umount /mnt/x"
        ),
    )?;
    Ok(())
}

/// Everything that a device is for the system, and what `rmad` has open.
const INVENTORY: &str = "ls /sys/block /sys/class/bdi | grep -cE 'ublk|nbd|^[0-9]+:'; ls /dev | grep -cE '^(ublk|nbd)'; \
     ls /dev/rma/by-*/* /dev/disk/by-id | wc -l; cat /run/udev/rules.d/60-rma-devices.rules | wc -l; ls /proc/$(pidof rmad)/task | wc -l; \
     ls -l /proc/$(pidof rmad)/fd | grep -c ' -> '";

fn come_and_go(a: &Machine) -> Result<()> {
    a.sh("rma release d2")?;
    a.wait_sh(10, "the name to be gone", "[ ! -e /dev/rma/by-name/d2 ]")?;
    a.sh("udevadm settle --timeout=20; sleep 1")?;
    let before = a.sh(INVENTORY)?;
    let begun = Instant::now();
    for round in 0..ROUNDS {
        a.sh_within(
            180,
            &format!(
                "set -e; d=/dev/rma/by-name/d2; rma allocate d2 --to a; until [ -b $d ]; do busybox usleep 20000; done
                 [ {round} = 0 ] || dd if=$d bs=4k count=1 iflag=direct 2>/dev/null | grep -qx round-{last}-
                 {{ echo round-{round}-; cat /dev/zero; }} | dd of=$d bs=64k count=16 iflag=fullblock oflag=direct conv=notrunc 2>/dev/null
                 udevadm settle --timeout=30; until rma release d2 2>/tmp/said; do grep -q 'open by' /tmp/said; busybox usleep 20000; done; while [ -L $d ]; do busybox usleep 20000; done",
                last = round.saturating_sub(1),
            ),
        )?;
    }
    println!(
        "    {ROUNDS} rounds took {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    let same = format!("[ \"$({INVENTORY})\" = \"{}\" ]", before.trim());
    if let Err(e) = a.wait_sh(20, "nothing to be left", &same) {
        let after = a.sh(INVENTORY)?;
        return Err(format!("{e}\nbefore:\n{before}\nafter:\n{after}").into());
    }
    a.sh("rma allocate d2 --to a")?;
    a.wait_sh(10, "the name", "[ -b /dev/rma/by-name/d2 ]")?;
    Ok(())
}

fn no_complaints(a: &Machine) -> Result<()> {
    a.sh(&format!("! dmesg | grep -E '{COMPLAINTS}'"))?;
    Ok(())
}

fn taken_by_force(a: &Machine) -> Result<()> {
    let node = a.sh("readlink -f /dev/rma/by-name/d2")?;
    let node = node.trim().trim_start_matches("/dev/").to_owned();
    let io = "fio --name=taken --filename=/dev/rma/by-name/d2 --direct=1 --ioengine=libaio --iodepth=32 --rw=randwrite --bs=8k \
              --time_based --runtime=120 --output=/tmp/fio-taken.log";
    a.sh(&format!(
        "dmesg -c >/tmp/dmesg; ({io}; echo $? >/tmp/taken) </dev/null >/dev/null 2>&1 &"
    ))?;
    a.wait_sh(
        30,
        "the I/O",
        &format!("[ $(awk '{{print $5}}' /sys/block/{node}/stat) -gt 50 ]"),
    )?;
    a.sh("rma release d2 2>/dev/null && exit 1; rma release d2 --force")?;
    a.wait_sh(
        20,
        "the I/O to fail",
        "[ -s /tmp/taken ] && ! grep -qx 0 /tmp/taken",
    )?;
    a.wait_sh(
        10,
        "the device to be gone",
        &format!("[ ! -e /sys/block/{node} ] && [ ! -e /dev/{node} ] && ! ls /dev/rma/by-name/d2 2>/dev/null"),
    )?;
    a.sh("! ps -o stat,args | grep -E '^D.*(fio|rmad)'")?;
    a.sh("rma allocate d2 --to a")?;
    wait_export(a, "d2")?;
    a.wait_sh(10, "the name", "[ -b /dev/rma/by-name/d2 ]")?;
    a.sh("fio --name=back --filename=/dev/rma/by-name/d2 --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=16k --size=4m \
          --verify=crc32c --verify_fatal=1 --output=/tmp/fio-back.log")?;
    // Failed I/O is what it should say; nothing hung or broke.
    a.sh(&format!(
        "! dmesg | grep -E 'EXT4|WARNING:|BUG:|Oops|blocked for more than' && ! dmesg | grep -E '{COMPLAINTS}' | grep -v {node}"
    ))?;
    Ok(())
}
