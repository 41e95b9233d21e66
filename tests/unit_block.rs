//! The block device backend on a loop device, where the machine lets us make one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rma::backend::{Backend, Disk, OpenError, Options};
use rma::unit::DiskOp;
use rma::wire::row::features;

/// A loop device over a file; detached at the end.
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| Self(path.trim_end().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_is_served_alone_and_with_its_own_operations() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    fs::write(&file, vec![0xaa; 1 << 20]).unwrap();
    let Some(device) = Loop::attach(&file) else {
        println!("skipped: no loop device can be made here");
        return;
    };
    let options = Options::default();
    let disk = Disk::open_block(&device.0, options).unwrap();
    let info = disk.info();
    assert_eq!((info.size_bytes, info.block_size), (1 << 20, 512));
    assert!(info.features & features::DURABLE != 0);
    // Nobody else gets it.
    assert!(matches!(
        Disk::open_block(&device.0, options),
        Err(OpenError::InUse)
    ));
    let too_long = disk.resize(Some(2 << 20));
    assert!(matches!(too_long, Err(OpenError::Shorter { .. })));

    let read = |offset, len| disk.execute(DiskOp::Read { offset, len }).unwrap();
    assert_eq!(read(0, 4096), [0xaa; 4096]);
    let write = DiskOp::Write {
        offset: 4096,
        data: vec![1; 8192].into(),
        fua: true,
    };
    disk.execute(write).unwrap();
    // FUA: it is in the file below, whatever the device's cache does.
    assert_eq!(fs::read(&file).unwrap()[4096..12288], [1; 8192]);
    let zeroes = DiskOp::WriteZeroes {
        offset: 8192,
        len: 4096,
        fua: false,
    };
    disk.execute(zeroes).unwrap();
    assert_eq!(read(4096, 4096), [1; 4096]);
    assert_eq!(read(8192, 4096), [0; 4096]);
    assert_eq!(read(12288, 4096), [0xaa; 4096]);
    let discard = DiskOp::Discard {
        offset: 65536,
        len: 65536,
    };
    disk.execute(discard).unwrap();
    if info.features & features::DISCARD != 0 {
        assert_eq!(read(65536, 65536), vec![0; 65536]);
    }
    disk.execute(DiskOp::Flush).unwrap();
}
