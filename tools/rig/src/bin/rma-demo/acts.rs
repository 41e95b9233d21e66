//! What the demonstration does with the devices once they are allocated.

use std::fs;

use rma_rig::{wait_equal_tables, wait_until};

use super::{Demo, PATIENCE, Result, nbd_uri, path, say, step};

impl Demo {
    pub(super) fn rules(&self) -> Result<()> {
        step("What host 108 owns: exports and generated udev rules");
        self.host("108").wait_export(PATIENCE, "116A1")?;
        self.host("108").wait_export(PATIENCE, "116B1")?;
        self.rma("108", &["exports"])?;
        self.rma("108", &["udev", "rules"])?;
        Ok(())
    }

    pub(super) fn private_disk(&self) -> Result<()> {
        step("Real I/O: 116A1 is an ext4 filesystem on unit 112, owned by host 108");
        let dir = self.rig.directory();
        let (here, back) = (dir.join("copied.img"), dir.join("copied-back.img"));
        let uri = nbd_uri(&self.host("108").wait_export(PATIENCE, "116A1")?);
        self.command("108", "nbdcopy", &[&uri, path(&here)?])?;
        self.command("108", "e2fsck", &["-fn", path(&here)?])?;
        self.command("108", "debugfs", &["-R", "cat /hello.txt", path(&here)?])?;
        let note = dir.join("note.txt");
        fs::write(&note, "written on host 108\n")?;
        self.command(
            "108",
            "debugfs",
            &[
                "-w",
                "-R",
                &format!("write {} note.txt", path(&note)?),
                path(&here)?,
            ],
        )?;
        self.command("108", "nbdcopy", &["--flush", path(&here)?, &uri])?;
        self.command("108", "nbdcopy", &[&uri, path(&back)?])?;
        self.command("108", "e2fsck", &["-fn", path(&back)?])?;
        let image = dir.join("116A1.img");
        if fs::read(&here)? != fs::read(&back)? || fs::read(&here)? != fs::read(&image)? {
            return Err("the filesystem is not the same after the round trip".into());
        }
        say(
            "the image on the unit, what was written and what was read back are equal byte by byte",
        );
        Ok(())
    }

    pub(super) fn shared_disk(&self) -> Result<()> {
        step("A shared device: host 108 writes to 116B1, host 110 reads it");
        let write = nbd_uri(&self.host("108").wait_export(PATIENCE, "116B1")?);
        let read = nbd_uri(&self.host("110").wait_export(PATIENCE, "116B1")?);
        self.command(
            "108",
            "qemu-io",
            &[
                "-f",
                "raw",
                "-c",
                "write -P 0x5a 64k 128k",
                "-c",
                "flush",
                &write,
            ],
        )?;
        let text = self.command(
            "110",
            "qemu-io",
            &["-r", "-f", "raw", "-c", "read -P 0x5a 64k 128k", &read],
        )?;
        if text.contains("verification failed") {
            return Err("host 110 read something else than host 108 wrote".into());
        }
        Ok(())
    }

    pub(super) fn refusal(&self) -> Result<()> {
        step("A host that is no owner is refused, at the unit");
        if self.host("110").export("116A1").is_some() {
            return Err("host 110 exports a device that it does not own".into());
        }
        say(
            "host 110 has no export of 116A1; so it asks unit 112's controller for a block all the same:",
        );
        let host = self.host("110");
        let status = host.json(&["status"]).ok_or("no status")?;
        let guid = status["host"]["guid"].as_str().unwrap_or_default();
        let device = self.host("108").row("116A1")?;
        let unit = self.host("108").row("112")?;
        let attempt = rma_rig::intruder::Attempt {
            interface: "eth0".into(),
            host: guid.parse()?,
            incarnation: status["incarnation"].as_u64().unwrap_or_default(),
            cluster: "A".parse()?,
            unit: unit.guid.parse()?,
            unit_mac: unit.macs.first().ok_or("no NIC")?.parse()?,
            ioc: 1,
            iod: 1,
            device: device.guid.parse()?,
            extent: rma::wire::Guid::NIL,
            epoch: device.epoch,
        };
        let answer = host
            .node()
            .enter(|| rma_rig::intruder::read_block(&attempt))??;
        println!("\n110: read 4096 bytes of 116A1 at 0  ->  {answer}");
        if answer != "not an owner" {
            return Err("the unit did not refuse".into());
        }
        Ok(())
    }

    pub(super) fn reallocation(&self) -> Result<()> {
        step("Reallocation, followed live: 116A2 goes from host 110 to host 108");
        let old = self.host("110").wait_export(PATIENCE, "116A2")?;
        let watch = self
            .host("110")
            .node()
            .spawn(&mut self.host("110").rma_command(&["watch"]))?;
        // The watch is in place when the daemon has answered it; an event proves it.
        self.rma("108", &["release", "116A2"])?;
        self.rma("108", &["allocate", "116A2", "--to", "108"])?;
        wait_until(PATIENCE, "the export to end on host 110", || !old.exists())?;
        let new = self.host("108").wait_export(PATIENCE, "116A2")?;
        wait_until(PATIENCE, "host 110's watch to show the change", || {
            watch.log().contains("dedicated 108")
        })?;
        println!("\n110# rma watch");
        print!("{}", watch.log());
        watch.terminate()?;
        watch.wait(PATIENCE)?;
        say(&format!(
            "gone from host 110; on host 108 it is {}",
            new.display()
        ));
        Ok(())
    }

    pub(super) fn reboot(&self) -> Result<()> {
        step("Host 110 reboots, and catches up");
        self.host("110").kill9()?;
        say("host 110 is killed; meanwhile 116A2 goes back to host 110, allocated from host 108:");
        self.rma("108", &["allocate", "116A2", "--to", "110"])?;
        self.host("110").restart()?;
        wait_equal_tables(PATIENCE, &[self.host("108"), self.host("110")], 11)?;
        println!();
        for line in self
            .host("110")
            .log()
            .lines()
            .filter(|l| l.contains("block 5"))
        {
            println!(
                "  {}",
                line.split_once("block ").map_or(line, |(_, text)| text)
            );
        }
        let path = self.host("110").wait_export(PATIENCE, "116A2")?;
        self.check_fig4("110")?;
        say(&format!(
            "host 110 has Fig. 4's table again and serves 116A2 at {}",
            path.display()
        ));
        Ok(())
    }
}
