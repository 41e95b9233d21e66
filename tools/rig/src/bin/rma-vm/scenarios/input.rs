//! What people and units get wrong.

use super::{exporting, memory};
use crate::Result;
use crate::cluster::{Lab, start_rmad, wait_export, write};
use crate::machine::Machine;

/// A name that would do harm if it reached a rule as it is (a basic string of TOML).
const HOSTILE: &str = r#"a\", RUN+=\"/bin/touch /tmp/harm\\ /../%n $kernel"#;

/// The largest device that a kernel has, bytes.
const LARGEST: u64 = (1 << 63) - 512;

pub(super) fn bad_input(lab: &Lab) -> Result<()> {
    // A filesystem in memory has files of such a length.
    let largest = format!(
        "\n[[controller.device]]\nnumber = 5\nname = \"largest\"\nbackend = \"file\"\npath = \"/tmp/largest.img\"\nsize = \"{LARGEST}\"\n"
    );
    let devices = memory(1, "d1", 8)
        + &memory(2, HOSTILE, 8)
        + &memory(3, "twin", 8)
        + &memory(4, "twin", 8)
        + &largest;
    lab.daemons(&devices, &exporting("nbd"))?;
    lab.share_parents()?;
    let a = &lab.a;
    let unit = a.sh("rma -o json devices | grep -o '02:72:6d:00:00:00' | head -n1")?;
    let unit = unit.trim();
    for number in 1..=4 {
        a.sh(&format!("rma allocate {unit}/1/{number} --to a"))?;
    }
    a.wait_sh(20, "four devices", "[ $(ls /dev/rma/by-guid | wc -l) = 4 ]")?;
    a.sh("udevadm settle --timeout=10; [ ! -e /tmp/harm ] && [ -b /dev/rma/by-name/d1 ]")?;
    // What two have names neither; what is hostile is spelt out.
    a.sh_fails("ls /dev/rma/by-name/twin")?;
    a.sh("[ $(ls /dev/rma/by-name | wc -l) = 2 ] && ls /dev/rma/by-name | grep -q x2f")?;
    a.sh("rma udev rules | grep -q 'other devices here have the same name'")?;

    to_the_end(a)?;

    // A rules directory that cannot be written: said once, and the devices are there.
    let host = |more: &str| format!("interface = \"eth0\"\ncluster = \"A\"\n{more}");
    a.sh("rma release d1; kill $(pidof rmad); echo >/tmp/occupied")?;
    a.wait_sh(20, "rmad to end", "! pidof rmad >/dev/null")?;
    write(
        a,
        "/etc/rma/rmad.toml",
        &host("export = \"nbd\"\nudev_rules_dir = \"/tmp/occupied\"\n"),
    )?;
    start_rmad(a)?;
    a.wait_sh(30, "rmad", "rma status")?;
    a.wait_sh(30, "an allocation", "rma allocate d1 --to a")?;
    wait_export(a, "d1")?;
    a.sh("grep -q 'cannot write the udev rules /tmp/occupied/60-rma-devices.rules' /tmp/rmad.log")?;

    // A driver that is not there: the other way is taken, and said why.
    let b = &lab.b;
    b.sh("kill $(pidof rmad); rmmod nbd 2>/dev/null; rm /lib/modules/*/nbd.ko; true")?;
    b.wait_sh(20, "rmad to end", "! pidof rmad >/dev/null")?;
    write(b, "/etc/rma/rmad.toml", &host("export = \"nbd\"\n"))?;
    start_rmad(b)?;
    a.sh("rma release d1")?;
    b.wait_sh(30, "an allocation", "rma allocate d1 --to b")?;
    b.wait_sh(
        30,
        "the reason",
        "rma exports | grep d1 | grep -q 'the kernel has no nbd driver'",
    )?;
    b.sh("kill $(pidof rmad)")?;
    b.wait_sh(20, "rmad to end", "! pidof rmad >/dev/null")?;
    write(b, "/etc/rma/rmad.toml", &host("export = \"auto\"\n"))?;
    b.sh("rm -f /lib/modules/*/ublk_drv.ko; rmmod ublk_drv 2>/dev/null; true")?;
    start_rmad(b)?;
    let export = wait_export(b, "d1")?;
    let reason = export["reason"].as_str().unwrap_or_default();
    if export["backend"] != "nbd-socket" || !reason.contains("nbd driver") {
        return Err(format!("not by socket, or not said why: {export}").into());
    }
    Ok(())
}

/// The last block of the largest device is written and read, and nothing behind it.
fn to_the_end(a: &Machine) -> Result<()> {
    a.sh("rma allocate largest --to a")?;
    wait_export(a, "largest")?;
    a.wait_sh(
        20,
        "the name of the largest device",
        "[ -b /dev/rma/by-name/largest ]",
    )?;
    let last = LARGEST / 512 - 1;
    a.sh(&format!(
        "set -e; d=/dev/rma/by-name/largest; [ $(blockdev --getsize64 $d) = {LARGEST} ]
         dd if=/dev/urandom of=/tmp/last bs=512 count=1 2>/dev/null
         dd if=/tmp/last of=$d bs=512 seek={last} oflag=direct conv=notrunc 2>/dev/null
         dd if=$d bs=512 skip={last} count=1 iflag=direct 2>/dev/null | cmp - /tmp/last
         dd if=/tmp/last of=$d bs=512 seek={beyond} oflag=direct conv=notrunc 2>/dev/null && exit 3
         udevadm settle --timeout=20; ! dmesg | grep 'I/O error'",
        beyond = last + 1,
    ))?;
    a.wait_sh(20, "the release", "rma release largest")?;
    Ok(())
}
