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
    let all = users_of_all(&[kernel_name]);
    all.into_iter().next().unwrap_or_default()
}

/// The same for several devices, one list for each, with one look at the processes.
pub fn users_of_all(kernel_names: &[&str]) -> Vec<Vec<String>> {
    users_in(Path::new("/proc"), Path::new("/sys"), kernel_names)
}

fn users_in(proc: &Path, sys: &Path, kernel_names: &[&str]) -> Vec<Vec<String>> {
    let disks: Vec<Disk> = kernel_names
        .iter()
        .map(|name| Disk::of(sys, name))
        .collect();
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    let openers = openers(proc, &disks);
    let each = disks.iter().zip(openers).map(|(disk, openers)| {
        let mut users = mounts(proc, disk);
        for line in swaps.lines().skip(1) {
            let path = line.split_whitespace().next().unwrap_or_default();
            if disk.is(path) {
                users.push(format!("swap on {path}"));
            }
        }
        for place in &disk.places {
            let holders = fs::read_dir(place.join("holders"));
            for holder in holders.into_iter().flatten().flatten() {
                users.push(format!("part of {}", name_of(&holder.path())));
            }
        }
        users.extend(openers);
        users
    });
    each.collect()
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

/// The processes that have each of the disks open.
fn openers(proc: &Path, disks: &[Disk]) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new(); disks.len()];
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let path = process.path();
        let id = name_of(&path).parse::<u32>();
        let Some(id) = id.ok().filter(|id| *id != std::process::id()) else {
            continue;
        };
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let name = name.trim();
        if PASSERS_BY.contains(&name) {
            continue;
        }
        let user = format!("open by {name} ({id})");
        for fd in fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let opened = disks.iter().position(|disk| is_open(&fd.path(), disk));
            if let Some(at) = opened
                && !found[at].contains(&user)
            {
                found[at].push(user.clone());
            }
        }
    }
    for users in &mut found {
        let more = users.len().saturating_sub(MAX_NAMED);
        users.truncate(MAX_NAMED);
        if more > 0 {
            users.push(format!("{more} more"));
        }
    }
    found
}

/// Whether a descriptor is of the disk or one of its partitions.
fn is_open(fd: &Path, disk: &Disk) -> bool {
    let target = fs::read_link(fd).unwrap_or_default();
    disk.is(&target.to_string_lossy())
        && fs::metadata(fd).is_ok_and(|meta| {
            let (major, minor) = (
                nix::sys::stat::major(meta.rdev()),
                nix::sys::stat::minor(meta.rdev()),
            );
            meta.file_type().is_block_device() && disk.numbers.contains(&format!("{major}:{minor}"))
        })
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
        let [mut users, others]: [Vec<String>; 2] =
            users_in(&proc, &sys, &["nbd3", "nbd4"]).try_into().unwrap();
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
        assert!(others.is_empty());
    }
}
