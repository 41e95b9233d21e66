//! A host without a disk: its root is a device of a unit.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::cluster::{Lab, begin_unit, start_rmad, start_unit, write};
use crate::machine::{Boot, Machine};
use crate::system::install;

/// Who the host is.
const GUID: &str = "d15c1e55-0000-4000-8000-000000000001";
/// How long a clean end may take, under emulation.
const OFF: Duration = Duration::from_secs(240);
/// How long the console may take to say something.
const SAID: Duration = Duration::from_secs(240);

pub(super) fn diskless(lab: &Lab) -> Result<()> {
    let initramfs = prepare(lab)?;
    // Another unit's guest, one that has the prepared disk.
    lab.unit.kill();
    let directory = lab.directory();
    let mut boot = Boot::small("store", &lab.image, directory)?;
    boot.disks.push((directory.join("a.qcow2"), "qcow2"));
    let unit = lab.instead_of_unit("store", &boot);
    unit.start()?;
    unit.wait_ready()?;
    begin_unit(
        &unit,
        "\n[[controller.device]]\nnumber = 1\nname = \"root\"\nbackend = \"block\"\npath = \"/dev/vdb\"\n",
    )?;
    let host = "interface = \"eth0\"\ncluster = \"A\"\n";
    write(&lab.b, "/etc/rma/rmad.toml", host)?;
    start_rmad(&lab.b)?;
    let boot = Boot {
        kernel: lab.image.kernel.clone(),
        initramfs,
        append: format!(
            "rw systemd.hostname=d rma.root=root rma.interface=eth0 rma.mtu=9000 rma.cluster=A \
             rma.guid={GUID} rma.name=d"
        ),
        disks: Vec::new(),
    };
    let d = lab.instead_of_a("d", &boot);
    d.start()?;
    // It cannot have it until it is given to it.
    console(lab, "it is not this host's")?;
    lab.b.wait_sh(
        120,
        "the device to be the host's",
        &format!("rma allocate unit --to b,{GUID} && rma allocate c1 --to b,{GUID} && rma allocate root --to {GUID}"),
    )?;
    d.wait_ready()?;
    lives_on_the_segment(&d)?;
    d.sh("echo kept >/root/file && sync && systemctl --no-block reboot")?;
    d.wait_off(OFF)?;
    d.start()?;
    d.wait_ready()?;
    d.sh("grep -qx kept /root/file && dmesg | { ! grep -E 'I/O error|EXT4-fs error'; }")?;
    d.sh("systemctl --no-block poweroff")?;
    d.wait_off(OFF)?;

    // Its unit is not there: that is said, and tried again until it is.
    unit.kill();
    let _ = fs::remove_file(directory.join("d.console"));
    d.start()?;
    console(lab, "trying again")?;
    unit.start()?;
    unit.wait_ready()?;
    start_unit(&unit)?;
    d.wait_ready()?;
    d.sh("grep -qx kept /root/file")?;
    Ok(())
}

/// Makes the disk of `a` one that can be booted from a unit; the initramfs for that.
fn prepare(lab: &Lab) -> Result<PathBuf> {
    let a = &lab.a;
    install(a, &["tools", "host", "boot"])?;
    // The channel's end has to be on the disk: nobody brings it.
    a.sh("mkdir -p /usr/local/bin && cp /run/rma-vm/rma-vm /usr/local/bin/ && cd /run/systemd/system && sed 's|/run/rma-vm|/usr/local/bin|' rma-vm.service \
          >/etc/systemd/system/rma-vm.service && mkdir -p /etc/systemd/system/sysinit.target.wants && \
          ln -s ../rma-vm.service /etc/systemd/system/sysinit.target.wants/")?;
    let said = a.sh_within(
        600,
        "update-initramfs -c -k $(uname -r) && dd if=/boot/initrd.img-$(uname -r) of=/dev/vdc bs=1M conv=fsync 2>/dev/null && \
         echo bytes $(stat -c %s /boot/initrd.img-$(uname -r))",
    )?;
    let bytes = said.lines().find_map(|line| line.strip_prefix("bytes "));
    let bytes: u64 = bytes.ok_or("no initramfs")?.trim().parse()?;
    a.sh("sync; systemctl --no-block poweroff")?;
    a.wait_off(OFF)?;
    let mut content = Vec::new();
    fs::File::open(lab.directory().join("a.outbox"))?
        .take(bytes)
        .read_to_end(&mut content)?;
    let path = lab.directory().join("initrd");
    fs::write(&path, content)?;
    Ok(path)
}

/// The host's root is a block device of ours, and its agent came with the initramfs.
fn lives_on_the_segment(d: &Machine) -> Result<()> {
    let said = d.sh("node=$(readlink -f /dev/rma/by-name/root); echo $node; mountpoint -d /; cat /sys/class/block/${node##*/}/dev; \
                     findmnt -n /; dmesg | grep -i rma")?;
    let lines: Vec<&str> = said.lines().collect();
    if !lines[0].starts_with("/dev/ublkb") || lines.get(1) != lines.get(2) {
        return Err(format!("its root is something else: {said}").into());
    }
    d.sh("rma status && [ -e /run/rma/boot ] && ! systemctl is-active -q rmad && pgrep -f @rmad")?;
    Ok(())
}

/// Waits until the host's console has said something.
fn console(lab: &Lab, words: &str) -> Result<()> {
    let path = lab.directory().join("d.console");
    rma_rig::wait_until(SAID, &format!("the console to say: {words}"), || {
        fs::read(&path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(words))
    })?;
    Ok(())
}
