//! Owned devices as disks: names, filesystems, partitions, extents.

use super::{exporting, file, memory};
use crate::Result;
use crate::cluster::{Lab, wait_export};
use crate::machine::Machine;

/// How long names may take to come and to go, milliseconds.
const NAME_MS: u64 = 1000;

/// Runs `command`, then waits until `until` succeeds; how long after the end of `command` that was,
/// milliseconds.
fn timed(guest: &Machine, command: &str, until: &str) -> Result<u64> {
    let script = format!(
        "now() {{ tr -d . </proc/uptime | cut -d' ' -f1; }}; {command} || exit 1; begun=$(now); \
         until {until}; do [ $(($(now) - begun)) -lt 3000 ] || exit 2; done; echo $((($(now) - begun) * 10))"
    );
    let said = guest.sh(&script)?;
    let last = said.lines().last().unwrap_or_default();
    Ok(last.trim().parse()?)
}

/// The GUID of a device, whoever owns it.
fn guid_of(guest: &Machine, name: &str) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(&guest.sh("rma -o json devices")?)?;
    let devices = value["devices"].as_array().cloned().unwrap_or_default();
    let device = devices.iter().find(|device| device["name"] == name);
    let guid = device.and_then(|device| device["guid"].as_str());
    Ok(guid.ok_or_else(|| format!("no device {name}"))?.to_owned())
}

/// A condition for the shell: each name of a device that has one device node leads to it.
fn all_names(name: &str, guid: &str) -> String {
    format!(
        "node=$(readlink -f /dev/rma/by-name/{name}) && [ -b $node ] && [ \"$(readlink -f /dev/rma/by-guid/{guid})\" = $node ] && \
         [ \"$(readlink -f /dev/disk/by-id/rma-{guid})\" = $node ] && {BY_PATH} | grep -qx $node"
    )
}

/// A condition for the shell: no name of a device or of a partition of it is left.
fn no_names(name: &str, guid: &str, node: &str) -> String {
    format!(
        "! ls -d /dev/rma/by-name/{name} /dev/rma/by-name/{name}-part* /dev/rma/by-guid/{guid}* /dev/disk/by-id/rma-{guid}* \
         2>/dev/null | grep -q . && ! {BY_PATH} | grep -q '^{node}'"
    )
}

/// What the names by path lead to, a line each.
const BY_PATH: &str = "find /dev/rma/by-path -type l 2>/dev/null | xargs -r -n1 readlink -f";

fn in_time(what: &str, ms: u64) -> Result<()> {
    if ms > NAME_MS {
        return Err(format!("{what} took {ms} ms, more than {NAME_MS}").into());
    }
    Ok(())
}

/// A filesystem on `node`: made, written, read back after a new mount, and found clean.
pub(super) fn filesystem(guest: &Machine, node: &str) -> Result<()> {
    guest.sh_within(
        120,
        &format!(
            "set -e; /sbin/mke2fs -q -t ext4 -F {node}; mkdir -p /mnt/x; mount -t ext4 {node} /mnt/x
             dd if=/dev/urandom of=/mnt/x/random bs=64k count=40 2>/dev/null
             for i in $(seq 50); do mkdir /mnt/x/d$i; echo $i >/mnt/x/d$i/f; done
             rm -r /mnt/x/d7 /mnt/x/d31; before=$(md5sum </mnt/x/random); sync; umount /mnt/x
             mount -t ext4 {node} /mnt/x; [ \"$before\" = \"$(md5sum </mnt/x/random)\" ]
             [ $(ls /mnt/x | wc -l) = 50 ]; umount /mnt/x; /sbin/e2fsck -f -n {node}"
        ),
    )?;
    Ok(())
}

/// Verified random I/O past the page cache.
pub(super) fn verified_io(node: &str, mib: u32, loops: u32) -> String {
    format!(
        "fio --name=verify --filename={node} --direct=1 --ioengine=psync --rw=randwrite --bs=16k \
         --size={mib}m --verify=crc32c --verify_fatal=1 --loops={loops} --numjobs=1 --output=/tmp/fio.log"
    )
}

/// All names of a device lead to `node`, and `rma udev test` says so.
fn names(guest: &Machine, name: &str, guid: &str, node: &str, part: &str) -> Result<()> {
    for link in [
        format!("rma/by-name/{name}{part}"),
        format!("rma/by-guid/{guid}{part}"),
        format!("disk/by-id/rma-{guid}{part}"),
    ] {
        guest.wait_sh(
            5,
            &format!("{link} -> {node}"),
            &format!("[ \"$(readlink -f /dev/{link})\" = {node} ]"),
        )?;
    }
    guest.wait_sh(5, "a name by path", &format!("{BY_PATH} | grep -qx {node}"))?;
    guest.wait_sh(5, "rma udev test", &format!("rma udev test {name}"))?;
    Ok(())
}

pub(super) fn disk(lab: &Lab, backend: &str) -> Result<()> {
    lab.daemons(
        &(memory(1, "d1", 32) + &memory(2, "d2", 48) + &file(3, "d3", 16)),
        &exporting(backend),
    )?;
    lab.share_parents()?;
    let a = &lab.a;
    // The first device may have to wait until the driver's module is loaded, which brings devices of
    // its own to udev.
    a.sh("rma allocate d2 --to a")?;
    wait_export(a, "d2")?;
    a.sh("udevadm settle --timeout=30")?;
    let guid = guid_of(a, "d1")?;
    let came = timed(a, "rma allocate d1 --to a", &all_names("d1", &guid))?;
    println!("    all names came after {came} ms");
    let export = wait_export(a, "d1")?;
    if export["backend"] != backend {
        return Err(format!("not by {backend}: {export}").into());
    }
    let node = export["path"].as_str().unwrap_or_default().to_owned();
    names(a, "d1", &guid, &node, "")?;
    let size = a.sh(&format!(
        "cat /sys/class/block/{}/size",
        node.trim_start_matches("/dev/")
    ))?;
    if size.trim() != "65536" {
        return Err(format!("{node} has {size} sectors").into());
    }
    a.sh_fails("[ -e /dev/rma/by-name/none ]")?;
    // The other host has no name of it.
    lab.b.sh_fails("ls /dev/rma/by-name/d1")?;
    filesystem(a, "/dev/rma/by-name/d1")?;
    a.sh_within(120, &verified_io("/dev/rma/by-name/d1", 8, 1))?;
    a.sh("blkdiscard /dev/rma/by-name/d1 2>/dev/null || true")?;
    partition(a, &guid, &node)?;
    let went = timed(a, "rma release d1", &no_names("d1", &guid, &node))?;
    println!("    all names went after {went} ms");
    a.wait_sh(5, "the device to be gone", &format!("! grep -q . /sys/class/block/{}/size 2>/dev/null || grep -qx 0 /sys/class/block/{}/size", node.trim_start_matches("/dev/"), node.trim_start_matches("/dev/")))?;
    if backend == "nbd" {
        resize(lab)?;
    }
    in_time("the names' coming", came)?;
    in_time("the names' going", went)?;
    extent(a, backend)
}

fn partition(a: &Machine, guid: &str, node: &str) -> Result<()> {
    a.sh(&format!(
        "printf 'o\\nn\\np\\n1\\n\\n\\nw\\n' | fdisk {node} >/tmp/fdisk.log 2>&1; blockdev --rereadpt {node}; \
         udevadm settle --timeout=10"
    ))?;
    names(a, "d1", guid, &format!("{node}p1"), "-part1")?;
    filesystem(a, "/dev/rma/by-name/d1-part1")?;
    a.wait_sh(
        5,
        "the filesystem's properties",
        &format!("udevadm info {node}p1 | grep -q ID_FS_TYPE=ext4 && udevadm info {node}p1 | grep -q ID_SERIAL=rma-{guid}"),
    )?;
    Ok(())
}

/// A device that grows at its unit grows at its owner, while it is mounted.
fn resize(lab: &Lab) -> Result<()> {
    let a = &lab.a;
    a.sh("rma allocate d3 --to a")?;
    wait_export(a, "d3")?;
    a.wait_sh(5, "the name", "[ -b /dev/rma/by-name/d3 ]")?;
    a.sh("/sbin/mke2fs -q -t ext4 /dev/rma/by-name/d3 && mkdir -p /mnt/x && mount -t ext4 /dev/rma/by-name/d3 /mnt/x")?;
    lab.unit
        .sh("sed -i 's/\"16MiB\"/\"24MiB\"/' /etc/rma/unitd.toml && rma unit reload")?;
    a.wait_sh(
        20,
        "the new size",
        "[ $(blockdev --getsize64 /dev/rma/by-name/d3) = 25165824 ]",
    )?;
    a.sh("echo more >/mnt/x/file && umount /mnt/x && /sbin/e2fsck -f -n /dev/rma/by-name/d3")?;
    Ok(())
}

fn extent(a: &Machine, backend: &str) -> Result<()> {
    a.sh("rma release d2 && rma granularity set extent")?;
    a.sh("rma carve d2 --offset 0 --size 16M --name left && rma carve d2 --offset 16M --size 32M --name right")?;
    a.sh("rma allocate d2 --to a,b && rma allocate right --to a")?;
    let guid = guid_of(a, "left")?;
    let came = timed(a, "rma allocate left --to a", &all_names("left", &guid))?;
    println!("    all names of an extent came after {came} ms");
    for name in ["left", "right"] {
        let export = wait_export(a, name)?;
        if export["backend"] != backend {
            return Err(format!("not by {backend}: {export}").into());
        }
        a.wait_sh(
            5,
            "the extent's name",
            &format!("[ -b /dev/rma/by-name/{name} ]"),
        )?;
    }
    // At the same time: each has its own range.
    a.sh("dd if=/dev/zero of=/dev/rma/by-name/right bs=1M count=32 oflag=direct 2>/dev/null")?;
    filesystem(a, "/dev/rma/by-name/left")?;
    a.sh("cmp -n 33554432 /dev/rma/by-name/right /dev/zero")?;
    filesystem(a, "/dev/rma/by-name/right")?;
    a.sh("/sbin/e2fsck -f -n /dev/rma/by-name/left")?;
    let node = a.sh("readlink -f /dev/rma/by-name/left")?;
    let gone = no_names("left", &guid, node.trim());
    let went = timed(a, "rma release left", &gone)?;
    println!("    all names of an extent went after {went} ms");
    in_time("the names' coming of an extent", came)?;
    in_time("the names' going of an extent", went)
}
