//! Who uses a block device: what is mounted from it, swap on it, devices made of it, and the processes
//! that have it open.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// udev's processes look at every device for a moment.
const PASSERS_BY: [&str; 3] = ["(udev-worker)", "systemd-udevd", "udevd"];
/// Processes that are named; of more, the number.
const MAX_NAMED: usize = 8;

/// A disk and its partitions.
struct Disk {
    /// `nbd0`, `nbd0p1` …
    names: Vec<String>,
    /// Their `major:minor`.
    numbers: BTreeSet<String>,
    places: Vec<PathBuf>,
}

/// The directories of a disk's partitions below its own in sysfs.
pub fn partitions(disk: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(disk).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("partition").exists())
        .collect()
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Disk {
    fn of(sys: &Path, kernel_name: &str) -> Self {
        let disk = sys.join("class/block").join(kernel_name);
        let mut places = vec![disk.clone()];
        places.extend(partitions(&disk));
        let number = |place: &PathBuf| fs::read_to_string(place.join("dev")).ok();
        Self {
            names: places.iter().map(|place| name_of(place)).collect(),
            numbers: places
                .iter()
                .filter_map(number)
                .map(|text| text.trim().to_owned())
                .collect(),
            places,
        }
    }

    fn is(&self, path: &str) -> bool {
        let name = path.strip_prefix("/dev/").unwrap_or_default();
        self.names.iter().any(|known| known == name)
    }
}

/// Each use of the device of this kernel name, in words: `mounted at /mnt`, `open by fio (712)`.
pub fn users(kernel_name: &str) -> Vec<String> {
    users_in(Path::new("/proc"), Path::new("/sys"), kernel_name)
}

fn users_in(proc: &Path, sys: &Path, kernel_name: &str) -> Vec<String> {
    let disk = Disk::of(sys, kernel_name);
    let mut users = mounts(proc, &disk);
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    for line in swaps.lines().skip(1) {
        let path = line.split_whitespace().next().unwrap_or_default();
        if disk.is(path) {
            users.push(format!("swap on {path}"));
        }
    }
    for place in &disk.places {
        for holder in fs::read_dir(place.join("holders"))
            .into_iter()
            .flatten()
            .flatten()
        {
            users.push(format!("part of {}", name_of(&holder.path())));
        }
    }
    users.extend(openers(proc, &disk));
    users
}

/// What is mounted, here and where the first process lives, which may be elsewhere.
fn mounts(proc: &Path, disk: &Disk) -> Vec<String> {
    let mut found = Vec::new();
    for process in ["self", "1"] {
        let text = fs::read_to_string(proc.join(process).join("mountinfo")).unwrap_or_default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let source = line
                .split_once(" - ")
                .and_then(|(_, rest)| rest.split(' ').nth(1))
                .unwrap_or_default();
            let (Some(number), Some(place)) = (words.get(2), words.get(4)) else {
                continue;
            };
            if disk.numbers.contains(*number) || disk.is(source) {
                let user = format!("mounted at {place}");
                if !found.contains(&user) {
                    found.push(user);
                }
            }
        }
    }
    found
}

fn openers(proc: &Path, disk: &Disk) -> Vec<String> {
    let mut found = Vec::new();
    let own = std::process::id();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let path = process.path();
        let Ok(id) = name_of(&path).parse::<u32>() else {
            continue;
        };
        let opens = |fd: fs::DirEntry| {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            disk.is(&target.to_string_lossy())
                && fs::metadata(fd.path()).is_ok_and(|meta| {
                    let (major, minor) = (
                        nix::sys::stat::major(meta.rdev()),
                        nix::sys::stat::minor(meta.rdev()),
                    );
                    meta.file_type().is_block_device()
                        && disk.numbers.contains(&format!("{major}:{minor}"))
                })
        };
        let mut fds = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        if id != own && fds.any(opens) {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let name = name.trim();
            if !PASSERS_BY.contains(&name) {
                found.push(format!("open by {name} ({id})"));
            }
        }
    }
    if found.len() > MAX_NAMED {
        let more = found.len() - MAX_NAMED;
        found.truncate(MAX_NAMED);
        found.push(format!("{more} more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn every_use_of_the_disk_and_its_partitions_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, sys) = (dir.path().join("proc"), dir.path().join("sys"));
        let block = sys.join("class/block/nbd3");
        write(block.join("dev"), "43:96\n");
        write(block.join("nbd3p1/dev"), "43:97\n");
        write(block.join("nbd3p1/partition"), "1\n");
        write(block.join("queue/dev"), "no partition\n");
        write(block.join("holders/dm-0/dev"), "");
        write(
            proc.join("self/mountinfo"),
            "36 35 43:97 / /mnt rw - ext4 /dev/nbd3p1 rw\n\
             37 35 43:9 / /other rw - ext4 /dev/nbd30 rw\n\
             38 35 0:44 / /pool rw - btrfs /dev/nbd3 rw\n",
        );
        write(
            proc.join("swaps"),
            "Filename Type Size Used Priority\n/dev/nbd3p1 partition 1 0 -2\n/dev/sda1 partition 1 0 -2\n",
        );
        let mut users = users_in(&proc, &sys, "nbd3");
        users.sort();
        assert_eq!(
            users,
            [
                "mounted at /mnt",
                "mounted at /pool",
                "part of dm-0",
                "swap on /dev/nbd3p1"
            ]
        );
        assert!(users_in(&proc, &sys, "nbd4").is_empty());
    }
}
