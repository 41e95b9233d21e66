//! The cluster of a scenario: a guest with unit and fabric services, two hosts, on one segment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::Result;
use crate::image::Image;
use crate::machine::{Boot, Machine};
use crate::segment::Segment;
use crate::system::{self, System};

const UNIT_PORT: usize = 0;
const FABRIC_PORT: usize = 3;
const PORTS: usize = 4;

/// Three guests, and what runs in them.
pub(crate) struct Lab {
    directory: PathBuf,
    segment: Segment,
    /// The I/O unit `unit`, with fabric services on a second interface.
    pub(crate) unit: Machine,
    /// The host `a`.
    pub(crate) a: Machine,
    /// The host `b`.
    pub(crate) b: Machine,
    /// How often `rmad` is killed where that is tried.
    pub(crate) kills: u32,
    /// What the small guests boot.
    pub(crate) image: Image,
}

impl Lab {
    /// Starts the guests and waits for them; no daemon runs yet.
    pub(crate) fn start(
        image: &Image,
        system: Option<&System>,
        directory: &Path,
        kills: u32,
    ) -> Result<Self> {
        let segment = Segment::start(directory, PORTS)?;
        let machine = |name, boot: &Boot, ports: &[usize]| {
            Machine::new(name, boot, &segment, ports, directory)
        };
        let small = |name| Boot::small(name, image, directory);
        let unit = machine("unit", &small("unit")?, &[UNIT_PORT, FABRIC_PORT]);
        let a = match system {
            Some(system) => machine("a", &system.boot("a", image, directory)?, &[1]),
            None => machine("a", &small("a")?, &[1]),
        };
        let b = machine("b", &small("b")?, &[2]);
        let all = [&unit, &a, &b];
        for guest in all {
            guest.start()?;
        }
        for guest in all {
            guest.wait_ready()?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            segment,
            unit,
            a,
            b,
            kills,
            image: image.clone(),
        })
    }

    /// Where the guests' files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Another guest in the place of the unit's, or of the host `a`, which must be off. It is not
    /// started.
    pub(crate) fn instead_of_unit(&self, name: &str, boot: &Boot) -> Machine {
        let ports = [UNIT_PORT, FABRIC_PORT];
        Machine::new(name, boot, &self.segment, &ports, &self.directory)
    }

    /// See [`Self::instead_of_unit`].
    pub(crate) fn instead_of_a(&self, name: &str, boot: &Boot) -> Machine {
        Machine::new(name, boot, &self.segment, &[1], &self.directory)
    }

    /// Ends the guests; before that, fetches their logs where somebody wants to read them.
    pub(crate) fn finish(self, fetch: bool) {
        if fetch {
            for guest in [&self.unit, &self.a, &self.b] {
                let command = "tail -n 2000 /tmp/*.log; dmesg | tail -n 200; ls -lR /dev/rma /dev/disk; cat /run/udev/rules.d/*; \
                               systemctl --failed; systemctl list-jobs; cat /etc/fstab; journalctl -b -n 3000 -o short-monotonic --no-pager";
                let text = match guest.try_sh(10, command) {
                    Ok(output) => output.stdout,
                    Err(e) => e.to_string(),
                };
                let path = self.directory.join(format!("{}.log", guest.name));
                let _ = fs::write(path, text);
            }
        }
        self.segment.finish();
    }

    /// Starts fabric services, the unit with `devices` (TOML below a controller `c1`) and both hosts
    /// with `host` (TOML), and waits until `a` knows every device.
    pub(crate) fn daemons(&self, devices: &str, host: &str) -> Result<()> {
        self.unit_and_fabric(devices)?;
        for guest in [&self.a, &self.b] {
            let text = format!("interface = \"eth0\"\ncluster = \"A\"\n{host}");
            write(guest, "/etc/rma/rmad.toml", &text)?;
            start_rmad(guest)?;
        }
        self.wait_equal(devices)
    }

    /// The same, where `a` has a whole system: its daemon is a service of the package.
    pub(crate) fn services(&self, devices: &str, host: &str) -> Result<()> {
        self.unit_and_fabric(devices)?;
        let text = format!("interface = \"eth0\"\ncluster = \"A\"\n{host}");
        for guest in [&self.a, &self.b] {
            guest.sh("mkdir -p /etc/rma")?;
            write(guest, "/etc/rma/rmad.toml", &text)?;
        }
        start_rmad(&self.b)?;
        system::install(&self.a, &["tools", "host"])?;
        self.wait_equal(devices)
    }

    /// Starts fabric services and the unit.
    fn unit_and_fabric(&self, devices: &str) -> Result<()> {
        begin_unit(&self.unit, devices)
    }

    fn wait_equal(&self, devices: &str) -> Result<()> {
        // Two hosts, a unit, a controller, and these.
        let rows = 4 + devices.matches("[[controller.device]]").count();
        for guest in [&self.a, &self.b] {
            let ready = format!(
                "rma -o json status 2>/dev/null | tr -d ' \\n' | grep '\"block\":0[,}}]' | grep '\"row_count\":{rows}[,}}]' | \
                 grep -q '\"units_reachable\":1'"
            );
            guest.wait_sh(60, "equal tables", &ready)?;
        }
        Ok(())
    }

    /// Starts the daemons of the unit's guest.
    pub(crate) fn start_unit(&self) -> Result<()> {
        start_unit(&self.unit)
    }

    /// Allocates unit and controller to both hosts, shared.
    pub(crate) fn share_parents(&self) -> Result<()> {
        self.a
            .sh("rma allocate unit --to a,b && rma allocate c1 --to a,b")?;
        Ok(())
    }

    /// Cuts the unit's guest off, or lets it take part again.
    pub(crate) fn cut_unit(&self, cut: bool) {
        self.segment.cut(UNIT_PORT, cut);
    }
}

/// Starts fabric services and a unit with `devices` (TOML below a controller `c1`) in a guest.
pub(crate) fn begin_unit(guest: &Machine, devices: &str) -> Result<()> {
    let fabric = "interface = \"eth1\"\npolicy = \"auto-join\"\nstate_dir = \"/var/lib/rma/f\"\n";
    write(guest, "/etc/rma/fabricd.toml", fabric)?;
    let unit = format!(
        "interface = \"eth0\"\nname = \"unit\"\ncluster = \"A\"\nstate_dir = \"/var/lib/rma/u\"\n\n\
         [[controller]]\nnumber = 1\nname = \"c1\"\n{devices}"
    );
    write(guest, "/etc/rma/unitd.toml", &unit)?;
    start_unit(guest)
}

/// Starts the daemons of a unit's guest.
pub(crate) fn start_unit(guest: &Machine) -> Result<()> {
    guest.sh("rma-fabricd >>/tmp/fabricd.log 2>&1 &")?;
    guest.sh("rma-unitd >>/tmp/unitd.log 2>&1 &")?;
    Ok(())
}

/// Writes a file in a guest, so that a reset leaves it.
pub(crate) fn write(guest: &Machine, path: &str, text: &str) -> Result<()> {
    guest.sh(&format!(
        "cat >{path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\nsync"
    ))?;
    Ok(())
}

/// Starts the host's daemon.
pub(crate) fn start_rmad(guest: &Machine) -> Result<()> {
    guest.sh("RUST_LOG=${RUST_LOG:-info} rmad >>/tmp/rmad.log 2>&1 &")?;
    Ok(())
}

/// The entry of `rma -o json exports` for a device, once it is there and usable.
pub(crate) fn wait_export(guest: &Machine, device: &str) -> Result<Value> {
    let mut found = Value::Null;
    rma_rig::wait_until(
        Duration::from_secs(30),
        &format!("{device} on {}", guest.name),
        || {
            let Ok(text) = guest.sh("rma -o json exports") else {
                return false;
            };
            let value: Value = serde_json::from_str(&text).unwrap_or_default();
            let exports = value["exports"].as_array().cloned().unwrap_or_default();
            let export = exports.into_iter().find(|export| export["name"] == device);
            found = export.unwrap_or_default();
            found["state"] == "up"
        },
    )
    .map_err(|e| format!("{e}; it is {found}"))?;
    Ok(found)
}
