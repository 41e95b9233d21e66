//! Guests with a whole system: Debian's packages with systemd as the first process, and ours to install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::image::Image;
use crate::machine::{Boot, Machine};

/// How long packages may take to be installed or removed, seconds.
const DPKG_SECONDS: u64 = 600;
/// The most bytes that a guest may leave in its outbox.
const OUTBOX_BYTES: u64 = 128 << 20;

/// The disk of the system, and one with our packages.
pub(crate) struct System {
    root: PathBuf,
    packages: PathBuf,
}

impl System {
    /// Finds the system's disk in `system`, and makes one in `directory` of the packages in
    /// `packages`.
    pub(crate) fn find(system: &Path, packages: &Path, directory: &Path) -> Result<Self> {
        let root = system.join("root.img");
        let root = fs::canonicalize(&root)
            .map_err(|e| format!("{}: {e}; run tools/setup", root.display()))?;
        let disk = directory.join("packages.img");
        if !fs::read_dir(packages).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(
                format!("no packages in {}; tools/vm makes them", packages.display()).into(),
            );
        }
        let mut mke2fs = Command::new("/sbin/mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]);
        mke2fs.arg(packages).arg(&disk).arg("128M");
        run(&mut mke2fs)?;
        Ok(Self {
            root,
            packages: disk,
        })
    }

    /// How a guest of its own boots it. What it writes stays in a file of the guest's.
    pub(crate) fn boot(&self, name: &str, image: &Image, directory: &Path) -> Result<Boot> {
        Ok(Boot {
            kernel: image.kernel.clone(),
            initramfs: image.initramfs.clone(),
            append: format!("rdinit=/etc/rdinit systemd.hostname={name}"),
            disks: vec![
                (self.overlay(name, directory)?, "qcow2"),
                (self.packages.clone(), "raw"),
                (outbox(name, directory)?, "raw"),
            ],
        })
    }

    /// A disk that begins as the system's.
    fn overlay(&self, name: &str, directory: &Path) -> Result<PathBuf> {
        let disk = directory.join(format!("{name}.qcow2"));
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        run(create.arg(&self.root).arg(&disk))?;
        Ok(disk)
    }
}

/// A guest's third disk, into which it puts what is to be had outside.
pub(crate) fn outbox(name: &str, directory: &Path) -> Result<PathBuf> {
    let path = directory.join(format!("{name}.outbox"));
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    file.set_len(OUTBOX_BYTES)?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let name = command.get_program().to_string_lossy().into_owned();
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// The disk with the packages is mounted, and they are named as dpkg wants them.
fn files(guest: &Machine, names: &[&str], revision: u32) -> Result<String> {
    guest.sh(
        "mkdir -p /run/packages; mountpoint -q /run/packages || mount -o ro /dev/vdb /run/packages",
    )?;
    let files = names
        .iter()
        .map(|name| format!("/run/packages/rma-{name}_*-{revision}_*.deb"));
    Ok(files.collect::<Vec<_>>().join(" "))
}

/// Installs our packages (`tools`, `host`, …).
pub(crate) fn install(guest: &Machine, names: &[&str]) -> Result<()> {
    install_revision(guest, names, 1)
}

/// Installs a revision of our packages.
pub(crate) fn install_revision(guest: &Machine, names: &[&str], revision: u32) -> Result<()> {
    let files = files(guest, names, revision)?;
    dpkg(guest, &format!("-i {files}"))
}

/// Has dpkg do something, which must succeed.
pub(crate) fn dpkg(guest: &Machine, what: &str) -> Result<()> {
    guest.sh_within(
        DPKG_SECONDS,
        &format!("DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io {what}"),
    )?;
    Ok(())
}
