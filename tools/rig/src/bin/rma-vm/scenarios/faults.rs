//! Owned devices while something dies.

use super::disks::verified_io;
use super::{exporting, file, memory};
use crate::Result;
use crate::cluster::{Lab, start_rmad, wait_export};
use crate::machine::Machine;

pub(super) fn kill(lab: &Lab, backend: &str) -> Result<()> {
    lab.daemons(&memory(1, "d1", 32), &exporting(backend))?;
    lab.share_parents()?;
    let a = &lab.a;
    a.sh("rma allocate d1 --to a")?;
    let export = wait_export(a, "d1")?;
    if export["backend"] != backend {
        return Err(format!("not by {backend}: {export}").into());
    }
    let node = export["path"].as_str().unwrap_or_default();
    a.wait_sh(10, "the name", "[ -b /dev/rma/by-name/d1 ]")?;
    begin_io(a)?;
    for _ in 0..lab.kills {
        io_goes_on(a)?;
        a.sh("kill -9 $(pidof rmad)")?;
        start_rmad(a)?;
        wait_export(a, "d1")?;
    }
    io_ends_well(a)?;
    let after = wait_export(a, "d1")?;
    if after["path"] != node {
        return Err(format!("another device than {node}: {after}").into());
    }
    // A clean stop leaves it there too.
    a.sh("kill $(pidof rmad)")?;
    a.wait_sh(20, "rmad to end", "! pidof rmad >/dev/null")?;
    a.sh("[ -b /dev/rma/by-name/d1 ]")?;
    start_rmad(a)?;
    wait_export(a, "d1")?;
    a.sh_within(120, &verified_io("/dev/rma/by-name/d1", 2, 1))?;
    Ok(())
}

/// A host `a` with a device `d1`, whose verified I/O has begun.
fn under_io(lab: &Lab, device: &str, backend: &str) -> Result<()> {
    lab.daemons(device, &exporting(backend))?;
    lab.share_parents()?;
    let a = &lab.a;
    a.sh("rma allocate d1 --to a")?;
    wait_export(a, "d1")?;
    a.wait_sh(10, "the name", "[ -b /dev/rma/by-name/d1 ]")?;
    begin_io(a)?;
    io_goes_on(a)
}

/// Verified I/O on `d1`, round after round until it is told that it is enough; then it says how it
/// ended.
fn begin_io(a: &Machine) -> Result<()> {
    let io = verified_io("/dev/rma/by-name/d1", 4, 1);
    a.sh(&format!(
        "(while [ ! -e /tmp/enough ]; do {io} || {{ echo failed >/tmp/io; exit; }}; echo >>/tmp/rounds; done; \
         echo good >/tmp/io) </dev/null >/tmp/io.log 2>&1 &"
    ))?;
    Ok(())
}

/// Another round has ended from now on, or the I/O has.
fn io_goes_on(a: &Machine) -> Result<()> {
    a.sh("rm -f /tmp/rounds")?;
    a.wait_sh(
        120,
        "a round of I/O",
        "[ -e /tmp/rounds ] || [ -e /tmp/io ]",
    )?;
    Ok(())
}

/// The I/O goes on and ends well, and the kernel has seen no error.
fn io_ends_well(a: &Machine) -> Result<()> {
    io_goes_on(a)?;
    a.sh("touch /tmp/enough")?;
    a.wait_sh(120, "the end of the I/O", "[ -s /tmp/io ]")?;
    let how = a.sh("cat /tmp/io; cat /tmp/fio.log")?;
    if !how.starts_with("good") {
        return Err(format!("the I/O failed: {how}").into());
    }
    a.sh_fails("dmesg | grep -E 'I/O error|Buffer I/O'")?;
    Ok(())
}

pub(super) fn unit_reset(lab: &Lab, backend: &str) -> Result<()> {
    under_io(lab, &file(1, "d1", 32), backend)?;
    lab.unit.kill();
    lab.unit.start()?;
    lab.unit.wait_ready()?;
    lab.start_unit()?;
    io_ends_well(&lab.a)
}

pub(super) fn cut(lab: &Lab, backend: &str) -> Result<()> {
    under_io(lab, &memory(1, "d1", 32), backend)?;
    lab.cut_unit(true);
    // Longer than two of the kernel's timeouts.
    lab.a.sh("sleep 13; [ ! -e /tmp/io ]")?;
    lab.a.wait_sh(
        30,
        "the export to wait",
        "rma exports | grep d1 | grep -q queueing",
    )?;
    lab.cut_unit(false);
    io_ends_well(&lab.a)
}

pub(super) fn reallocate(lab: &Lab, backend: &str) -> Result<()> {
    lab.daemons(&memory(1, "d1", 32), &exporting(backend))?;
    lab.share_parents()?;
    let (a, b) = (&lab.a, &lab.b);
    a.sh("rma allocate d1 --to a")?;
    wait_export(a, "d1")?;
    a.wait_sh(10, "the name", "[ -b /dev/rma/by-name/d1 ]")?;
    a.sh("/sbin/mke2fs -q -t ext4 /dev/rma/by-name/d1 && mkdir -p /mnt/x && mount -t ext4 /dev/rma/by-name/d1 /mnt/x && \
          echo before >/mnt/x/file && sync")?;
    for attempt in ["rma allocate d1 --to b", "rma release d1"] {
        let said = a.sh_fails(attempt)?;
        if !said.contains("mounted at /mnt/x") || !said.contains("--force") {
            return Err(format!("{attempt}: not said who uses it: {said}").into());
        }
    }
    // Nor may any other host: the owner is asked.
    for attempt in ["rma allocate d1 --to b", "rma release d1"] {
        let said = b.sh_fails(attempt)?;
        let words = ["in use on host a", "mounted at /mnt/x", "--force"];
        if !words.iter().all(|word| said.contains(word)) {
            return Err(format!("{attempt} at b: not said who uses it: {said}").into());
        }
    }
    a.sh("echo still >/mnt/x/still && sync && [ -b /dev/rma/by-name/d1 ]")?;
    // From now on it writes without an end.
    a.sh("(while :; do dd if=/dev/urandom of=/mnt/x/noise bs=64k count=8 conv=fsync 2>/dev/null || { echo >/tmp/failed; exit; }; done) \
          </dev/null >/dev/null 2>&1 &")?;
    a.sh("rma allocate d1 --to b --force")?;
    wait_export(b, "d1")?;
    b.wait_sh(10, "the name", "[ -b /dev/rma/by-name/d1 ]")?;
    a.wait_sh(20, "the writes to fail", "[ -e /tmp/failed ]")?;
    a.wait_sh(
        10,
        "the names to be gone",
        "! ls /dev/rma/by-name/d1 /dev/rma/by-guid/* 2>/dev/null",
    )?;
    a.sh_fails("echo late >/mnt/x/late && sync /mnt/x/late")?;
    // What b finds is what it stays, whatever a does.
    let sum = "md5sum </dev/rma/by-name/d1; echo 3 >/proc/sys/vm/drop_caches";
    let before = b.sh(sum)?;
    a.sh("umount /mnt/x 2>/dev/null; sync; true")?;
    let after = b.sh(sum)?;
    if before != after {
        return Err("the disk has changed after it was taken".into());
    }
    // The journal's replay is all that it takes.
    b.sh("/sbin/e2fsck -f -y /dev/rma/by-name/d1; [ $? -le 1 ] && /sbin/e2fsck -f -n /dev/rma/by-name/d1")?;
    b.sh("mkdir -p /mnt/x && mount -t ext4 /dev/rma/by-name/d1 /mnt/x && grep -qx before /mnt/x/file && \
          grep -qx still /mnt/x/still && [ ! -e /mnt/x/late ] && umount /mnt/x")?;
    a.wait_sh(
        20,
        "the kernel's device to be gone",
        "! ls /sys/block | grep -qE '^ublkb'",
    )?;
    Ok(())
}

/// Devices of the host that is reset.
const MANY: u32 = 32;

pub(super) fn host_reset(lab: &Lab, backend: &str) -> Result<()> {
    let mut devices = String::new();
    for number in 1..=MANY {
        devices += &memory(number, &format!("d{number}"), 8);
    }
    lab.daemons(&devices, &exporting(backend))?;
    let a = &lab.a;
    // All of them at once.
    a.sh("rma granularity set controller && rma allocate unit --to a && rma allocate c1 --to a")?;
    let all = format!("[ $(ls /dev/rma/by-name | wc -l) = {MANY} ]");
    a.wait_sh(90, "all names", &all)?;
    let names = "cd /dev/rma; for l in by-name/* by-guid/* by-path/*/*/*; do echo $l; done; ls /dev/disk/by-id";
    let before = a.sh(names)?;
    a.sh("/sbin/mke2fs -q -t ext4 /dev/rma/by-name/d7 && mkdir -p /mnt/x && mount -t ext4 /dev/rma/by-name/d7 /mnt/x && \
          echo kept >/mnt/x/file && sync")?;
    a.kill();
    a.start()?;
    a.wait_ready()?;
    start_rmad(a)?;
    a.wait_sh(120, "all names after the reset", &all)?;
    let after = a.sh(names)?;
    if before != after {
        return Err(format!("other names than before:\n{before}\n{after}").into());
    }
    a.sh("mkdir -p /mnt/x && mount -t ext4 /dev/rma/by-name/d7 /mnt/x && grep -qx kept /mnt/x/file && umount /mnt/x")?;
    Ok(())
}
