//! What guests boot: a kernel from Debian's package, and an initramfs of installed programs and ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// Modules that guests load, with what these need themselves.
const MODULES: [&str; 9] = [
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
    "nbd",
    "ublk_drv",
    "mq-deadline",
    "kyber-iosched",
    "bfq",
];
/// Programs of the machine, under the paths at which they are in the guest.
const PROGRAMS: [(&str, &[&str]); 8] = [
    ("/bin/busybox", &["/bin/busybox"]),
    ("/sbin/mke2fs", &["/sbin/mke2fs", "/usr/sbin/mke2fs"]),
    ("/sbin/e2fsck", &["/sbin/e2fsck", "/usr/sbin/e2fsck"]),
    ("/bin/udevadm", &["/bin/udevadm", "/usr/bin/udevadm"]),
    ("/usr/bin/fio", &["/usr/bin/fio"]),
    // Those of busybox can less.
    (
        "/opt/bin/blkdiscard",
        &["/sbin/blkdiscard", "/usr/sbin/blkdiscard"],
    ),
    ("/opt/bin/fallocate", &["/usr/bin/fallocate"]),
    (
        "/lib/systemd/systemd-udevd",
        &["/lib/systemd/systemd-udevd"],
    ),
];
/// Rules that every system with udev has and that block devices meet.
const RULES: [&str; 3] = [
    "50-udev-default.rules",
    "60-block.rules",
    "60-persistent-storage.rules",
];
/// Ours.
const DAEMONS: [&str; 5] = ["rma", "rmad", "rma-unitd", "rma-fabricd", "rma-vm"];

/// Kernel and initramfs, ready to be booted.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Image {
    /// Builds the initramfs into `directory`. `unpacked` is where the kernel's package has been
    /// unpacked, `programs` where ours are.
    pub(crate) fn build(unpacked: &Path, programs: &Path, directory: &Path) -> Result<Self> {
        let kernel = only_one(&unpacked.join("boot"), "vmlinuz-")?;
        let modules = only_one(&unpacked.join("lib/modules"), "")?;
        let mut tree = Tree::default();
        for (path, places) in PROGRAMS {
            let place = places
                .iter()
                .map(Path::new)
                .find(|place| place.exists())
                .ok_or_else(|| format!("{path} is not installed; run tools/setup"))?;
            tree.program(path, place)?;
        }
        for name in RULES {
            let at = format!("lib/udev/rules.d/{name}");
            tree.file(&at, 0o644, fs::read(Path::new("/").join(&at))?);
        }
        for name in DAEMONS {
            let stripped = directory.join(name);
            run(Command::new("strip")
                .arg("-o")
                .arg(&stripped)
                .arg(programs.join(name)))?;
            tree.program(&format!("/bin/{name}"), &stripped)?;
        }
        tree.modules(&modules)?;
        for applet in text_of(Command::new("/bin/busybox").arg("--list-full"))?.lines() {
            tree.link(applet, "/bin/busybox");
        }
        tree.link("init", "/bin/busybox");
        for directory in [
            "proc",
            "sys",
            "dev",
            "run",
            "tmp",
            "mnt",
            "disk",
            "var/lib/rma",
        ] {
            tree.add(directory, Entry::Directory);
        }
        tree.file("etc/rcS", 0o755, include_bytes!("rcS").to_vec());
        tree.file("etc/rdinit", 0o755, include_bytes!("rdinit").to_vec());
        tree.file("etc/inittab", 0o644, include_bytes!("inittab").to_vec());
        let accounts = "root:x:0:0:root:/:/bin/sh\n";
        tree.file("etc/passwd", 0o644, accounts.into());
        let groups = "root:x:0:\ndisk:x:6:\ntty:x:5:\ndialout:x:20:\nkmem:x:15:\ninput:x:101:\n\
                      video:x:44:\naudio:x:29:\ncdrom:x:24:\ntape:x:26:\nlp:x:7:\nkvm:x:102:\n\
                      render:x:103:\nsgx:x:104:\n";
        tree.file("etc/group", 0o644, groups.into());
        let initramfs = directory.join("initramfs");
        tree.write(&initramfs)?;
        Ok(Self { kernel, initramfs })
    }
}

/// The one entry of a directory whose name begins so.
fn only_one(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory)
        .map_err(|e| format!("{}: {e}; run tools/setup", directory.display()))?;
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(prefix)
        });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => Err(format!("not one {prefix}* in {}", directory.display()).into()),
    }
}

fn text_of(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let name = command.get_program().to_string_lossy().into_owned();
        return Err(format!("{name}: {said}").into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(command: &mut Command) -> Result<()> {
    text_of(command).map(drop)
}

/// What is at a path.
#[derive(Debug)]
enum Entry {
    Directory,
    File(u32, Vec<u8>),
    Link(String),
}

/// A filesystem tree that becomes an archive. What came first at a path stays.
#[derive(Debug, Default)]
struct Tree {
    entries: BTreeMap<String, Entry>,
    libraries: BTreeSet<String>,
}

impl Tree {
    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries
                .entry(path[..at].to_owned())
                .or_insert(Entry::Directory);
        }
        self.entries.entry(path.to_owned()).or_insert(entry);
    }

    fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.add(path, Entry::File(mode, content));
    }

    fn link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link(target.to_owned()));
    }

    /// A program and the libraries that it is linked with.
    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, fs::read(from)?);
        // A static program is none for ldd.
        let Ok(libraries) = text_of(Command::new("ldd").arg(from)) else {
            return Ok(());
        };
        for word in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
            if self.libraries.insert(word.to_owned()) {
                let content = fs::read(word).map_err(|e| format!("{word}: {e}"))?;
                self.file(word, 0o755, content);
            }
        }
        Ok(())
    }

    /// The modules, unpacked, and the list by which `modprobe` finds them.
    fn modules(&mut self, from: &Path) -> Result<()> {
        let version = from.file_name().unwrap_or_default().to_string_lossy();
        let mut dependencies = String::new();
        for name in MODULES {
            let found = text_of(
                Command::new("find")
                    .arg(from)
                    .args(["-name", &format!("{name}.ko*")]),
            )?;
            let packed = found
                .lines()
                .next()
                .ok_or_else(|| format!("the kernel has no module {name}"))?;
            let content = if Path::new(packed).extension().is_some_and(|ext| ext == "xz") {
                let output = Command::new("xz").args(["-dc", packed]).output()?;
                output.stdout
            } else {
                fs::read(packed)?
            };
            self.file(&format!("lib/modules/{version}/{name}.ko"), 0o644, content);
            let needs = match name {
                "net_failover" => " failover.ko",
                "virtio_net" => " net_failover.ko failover.ko",
                _ => "",
            };
            dependencies.push_str(&format!("{name}.ko:{needs}\n"));
        }
        let list = format!("lib/modules/{version}/modules.dep");
        self.file(&list, 0o644, dependencies.into_bytes());
        for list in ["modules.alias", "modules.symbols"] {
            self.file(&format!("lib/modules/{version}/{list}"), 0o644, Vec::new());
        }
        Ok(())
    }

    /// Writes the tree as an archive that the kernel unpacks ("newc").
    fn write(&self, path: &Path) -> Result<()> {
        let mut out = BufWriter::new(fs::File::create(path)?);
        let mut written = 0;
        // `/lib64` and the like are real directories here.
        for (number, (name, entry)) in (1_u32..).zip(&self.entries) {
            let (mode, content): (u32, &[u8]) = match entry {
                Entry::Directory => (0o040_755, &[]),
                Entry::File(mode, content) => (0o100_000 | mode, content),
                Entry::Link(target) => (0o120_777, target.as_bytes()),
            };
            record(&mut out, &mut written, number, name, mode, content)?;
        }
        record(&mut out, &mut written, 0, "TRAILER!!!", 0, &[])?;
        out.flush()?;
        Ok(())
    }
}

fn record(
    out: &mut impl Write,
    written: &mut usize,
    number: u32,
    name: &str,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let fields = [
        number,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(content.len())?,
        0,
        0,
        0,
        0,
        u32::try_from(name.len() + 1)?,
        0,
    ];
    let mut head = String::from("070701");
    for field in fields {
        head.push_str(&format!("{field:08x}"));
    }
    head.push_str(name);
    head.push('\0');
    for part in [head.as_bytes(), content] {
        out.write_all(part)?;
        *written += part.len();
        let padding = written.next_multiple_of(4) - *written;
        out.write_all(&[0; 3][..padding])?;
        *written += padding;
    }
    Ok(())
}
