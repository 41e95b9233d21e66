//! Whole systems: packages, services, fstab, the end.

use std::time::{Duration, Instant};

use super::{exporting, file, memory};
use crate::Result;
use crate::cluster::{Lab, wait_export};
use crate::machine::Machine;
use crate::system::{dpkg, install, install_revision};

/// How long a shutdown may take whose unit is dead.
const SHUTDOWN: Duration = Duration::from_secs(30);
/// Devices of the host that is reset.
const MANY: u32 = 32;
/// Of these are mounted.
const MOUNTED: u32 = 4;

/// Makes a filesystem on a device that the host owns, and has fstab mount it.
fn into_fstab(a: &Machine, name: &str) -> Result<()> {
    a.wait_sh(60, "the name", &format!("[ -b /dev/rma/by-name/{name} ]"))?;
    a.sh(&format!(
        "mke2fs -q -t ext4 /dev/rma/by-name/{name} && mkdir -p /srv/{name} && \
         guid=$(rma -o json exports | tr -d ' \\n' | sed 's/.*\"guid\":\"\\([^\"]*\\)\",\"name\":\"{name}\".*/\\1/') && \
         echo \"/dev/rma/by-guid/$guid /srv/{name} ext4 _netdev,x-systemd.requires=rma.target 0 2\" >>/etc/fstab && \
         systemctl daemon-reload && mount /srv/{name} && echo kept >/srv/{name}/file && sync"
    ))?;
    Ok(())
}

pub(super) fn packages(lab: &Lab) -> Result<()> {
    lab.services(&memory(1, "d1", 32), &exporting("auto"))?;
    lab.share_parents()?;
    let a = &lab.a;
    a.sh("systemctl is-active rmad.service && man_page=/usr/bin/rma && [ -x $man_page ] && [ -e /lib/udev/rules.d/61-rma.rules ]")?;
    services_are_sound(a)?;
    a.sh("rma allocate d1 --to a")?;
    wait_export(a, "d1")?;
    into_fstab(a, "d1")?;
    base_rules_hold(a)?;

    // An upgrade: another process serves the device, and what is mounted from it stays.
    let before = a.sh("systemctl show -p MainPID --value rmad")?;
    a.sh("(while :; do echo more >>/srv/d1/log && sync /srv/d1/log || { echo >/run/failed; exit; }; sleep 0.5; done) </dev/null >/dev/null 2>&1 &")?;
    install_revision(a, &["tools", "host"], 2)?;
    a.wait_sh(
        60,
        "the new agent",
        &format!(
            "[ $(systemctl show -p MainPID --value rmad) != {} ] && systemctl is-active -q rmad && rma status",
            before.trim()
        ),
    )?;
    wait_export(a, "d1")?;
    a.sh("mountpoint /srv/d1 && [ ! -e /run/failed ] && dpkg -s rma-host | grep -q -- '-2$'")?;

    // It hangs: the service manager notices, and another one serves the device.
    let before = a.sh("systemctl show -p MainPID --value rmad")?;
    a.sh("sed 's/^WatchdogSec=.*/WatchdogSec=9/' /lib/systemd/system/rmad.service >/etc/systemd/system/rmad.service && \
          systemctl daemon-reload && systemctl kill --kill-who=main -s TERM rmad")?;
    let another = |pid: &str| {
        format!(
            "pid=$(systemctl show -p MainPID --value rmad); [ $pid != {} ] && [ $pid != 0 ] && systemctl is-active -q rmad",
            pid.trim()
        )
    };
    a.wait_sh(60, "the agent with a shorter watchdog", &another(&before))?;
    let before = a.sh("systemctl show -p MainPID --value rmad")?;
    // Longer than the watchdog's time: it tells.
    a.sh("sleep 12")?;
    let after = a.sh("systemctl show -p MainPID --value rmad")?;
    if before != after {
        return Err("the watchdog has ended an agent that was well".into());
    }
    a.sh("kill -STOP $(systemctl show -p MainPID --value rmad)")?;
    a.wait_sh(60, "another agent", &another(&before))?;
    wait_export(a, "d1")?;
    a.sh("mountpoint /srv/d1 && [ ! -e /run/failed ]")?;

    // Not while it is in use.
    let said = a.sh_fails("dpkg --remove rma-host")?;
    if !said.contains("mounted at /srv/d1") {
        return Err(format!("not said who uses it: {said}").into());
    }
    a.wait_sh(30, "the agent", "systemctl is-active -q rmad && rma status")?;
    a.sh("[ ! -e /run/failed ]")?;
    a.sh("pkill -f srv/d1/[l]og; until umount /srv/d1; do pkill -f srv/d1/[l]og; sleep 0.2; done; sed -i /srv/d /etc/fstab && systemctl daemon-reload")?;
    dpkg(a, "--remove rma-host")?;
    a.sh("! ls /sys/block | grep -q ublkb && [ ! -e /usr/sbin/rmad ] && ! systemctl is-active -q rmad")?;
    a.sh("[ -e /var/lib/rma/crt ] && ! ls /dev/rma/by-name/* 2>/dev/null")?;
    dpkg(a, "--purge rma-host rma-tools")?;
    a.sh("[ ! -e /var/lib/rma/crt ] && systemctl --failed --no-legend | { ! grep rma; }")?;

    unit_and_fabric(lab)
}

/// What systemd itself says of the units.
fn services_are_sound(a: &Machine) -> Result<()> {
    let said = a.sh("systemd-analyze verify --man=no /lib/systemd/system/rmad.service /lib/systemd/system/rma-abandon.service \
                     /lib/systemd/system/rma.target 2>&1; true")?;
    if said.lines().any(|line| line.contains("rma")) {
        return Err(format!("systemd-analyze verify: {said}").into());
    }
    // Out of 10, the more the worse; without any hardening a service has 9.6.
    a.sh("systemd-analyze security --threshold=50 rmad.service >/dev/null")?;
    Ok(())
}

/// The rules that come with the package.
fn base_rules_hold(a: &Machine) -> Result<()> {
    a.sh(
        "node=$(readlink -f /dev/rma/by-name/d1); name=${node##*/}; \
          grep -q '\\[none\\]' /sys/block/$name/queue/scheduler && \
          udevadm info $node | grep -qx 'E: DM_MULTIPATH_DEVICE_PATH=0' && \
          [ $(stat -c %a /dev/ublk-control) = 600 ]",
    )?;
    Ok(())
}

/// The other two services, installed, active, removed.
fn unit_and_fabric(lab: &Lab) -> Result<()> {
    let a = &lab.a;
    a.sh("mkdir -p /etc/rma && printf 'interface = \"eth0\"\\n' >/etc/rma/fabricd.toml && \
          printf 'interface = \"eth0\"\\nname = \"second\"\\ncluster = \"A\"\\n[[controller]]\\nnumber = 1\\nname = \"c9\"\\n\
          [[controller.device]]\\nnumber = 1\\nname = \"f\"\\nbackend = \"file\"\\npath = \"/srv/f.img\"\\nsize = \"1MiB\"\\n' >/etc/rma/unitd.toml")?;
    install(a, &["unit", "fabric", "tools"])?;
    a.sh("systemctl is-active rma-unitd.service rma-fabricd.service")?;
    a.sh(
        "systemd-analyze security --threshold=35 rma-unitd.service >/dev/null && \
          systemd-analyze security --threshold=30 rma-fabricd.service >/dev/null",
    )?;
    a.sh("rma unit status && rma fabric status && systemctl reload rma-unitd rma-fabricd && systemctl is-active rma-unitd rma-fabricd")?;
    install_revision(a, &["unit", "fabric"], 2)?;
    a.sh("systemctl is-active rma-unitd.service rma-fabricd.service")?;
    dpkg(a, "--purge rma-unit rma-fabric")?;
    a.sh("! systemctl is-active -q rma-unitd && [ ! -e /var/lib/rma/fabricd ] && [ -e /var/lib/rma/unitd/registers ]")?;
    Ok(())
}

pub(super) fn reset(lab: &Lab) -> Result<()> {
    let mut devices = String::new();
    for number in 1..=MANY {
        devices += &memory(number, &format!("d{number}"), 8);
    }
    lab.services(&devices, &exporting("auto"))?;
    let a = &lab.a;
    a.sh("rma granularity set controller && rma allocate unit --to a && rma allocate c1 --to a")?;
    let all = format!("[ $(ls /dev/rma/by-name | wc -l) = {MANY} ]");
    a.wait_sh(240, "all names", &all)?;
    for number in 1..=MOUNTED {
        into_fstab(a, &format!("d{number}"))?;
    }
    let names = "cd /dev/rma; for l in by-name/* by-guid/* by-path/*/*/*; do echo $l; done; ls /dev/disk/by-id";
    let before = a.sh(names)?;
    a.sh("sync")?;
    a.kill();
    a.start()?;
    a.wait_ready()?;
    a.wait_sh(240, "all names after the reset", &all)?;
    let after = a.sh(names)?;
    if before != after {
        return Err(format!("other names than before:\n{before}\n{after}").into());
    }
    for number in 1..=MOUNTED {
        a.wait_sh(
            60,
            "the mount",
            &format!("mountpoint -q /srv/d{number} && grep -qx kept /srv/d{number}/file"),
        )?;
    }
    a.wait_sh(
        60,
        "the boot's end",
        "systemctl is-system-running | grep -q running",
    )?;
    Ok(())
}

pub(super) fn shutdown(lab: &Lab) -> Result<()> {
    lab.services(&file(1, "d1", 64), &exporting("auto"))?;
    lab.share_parents()?;
    let a = &lab.a;
    a.sh("rma allocate d1 --to a")?;
    wait_export(a, "d1")?;
    into_fstab(a, "d1")?;
    // What is written now waits for a unit that will never answer.
    lab.unit.kill();
    a.sh("(dd if=/dev/zero of=/srv/d1/lost bs=64k count=200; sync) </dev/null >/dev/null 2>&1 &")?;
    a.wait_sh(
        30,
        "the silence",
        "rma exports | grep d1 | grep -q queueing",
    )?;
    let begun = Instant::now();
    a.sh("systemctl --no-block poweroff")?;
    a.wait_off(SHUTDOWN * 4)?;
    let took = begun.elapsed();
    println!("    off after {:.1} s", took.as_secs_f64());
    if took > SHUTDOWN {
        return Err(format!("the shutdown took {took:?}").into());
    }
    Ok(())
}
