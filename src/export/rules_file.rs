//! The file in which udev finds the generated rules: replaced as a whole, or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The rules cannot be put where udev looks. The text is one line.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the udev rules {path}: {reason}", path = path.display())]
pub struct RulesFileError {
    path: PathBuf,
    #[source]
    reason: io::Error,
}

/// A rules file, `/run/udev/rules.d/60-rma-devices.rules` for instance.
#[derive(Debug, Clone)]
pub struct RulesFile {
    path: PathBuf,
}

impl RulesFile {
    /// The file `name` in the rules directory `directory`. Nothing is touched yet.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self {
            path: directory.join(name),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `text` the file's content, atomically; a missing rules directory is made (not its
    /// parents). Says whether the content is another than before, so that udev is to reload.
    pub fn write(&self, text: &str) -> Result<bool, RulesFileError> {
        self.replace(text).map_err(|reason| self.error(reason))
    }

    /// Removes the file. Says whether there was one.
    pub fn remove(&self) -> Result<bool, RulesFileError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.error(e)),
        }
    }

    fn error(&self, reason: io::Error) -> RulesFileError {
        RulesFileError {
            path: self.path.clone(),
            reason,
        }
    }

    fn replace(&self, text: &str) -> io::Result<bool> {
        match fs::read(&self.path) {
            Ok(old) if old == text.as_bytes() => return Ok(false),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        match fs::create_dir(directory) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        // udev reads files that end in `.rules` only.
        let temporary = self.path.with_extension("rules.tmp");
        let written = write_durably(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &self.path))
            .and_then(|()| File::open(directory)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.map(|()| true)
    }
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_changes_only_when_its_content_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = RulesFile::new(&dir.path().join("rules.d"), "60-rma-devices.rules");
        assert!(file.write("# one\n").unwrap());
        assert!(!file.write("# one\n").unwrap());
        assert!(file.write("# two\n").unwrap());
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "# two\n");
        let names = fs::read_dir(dir.path().join("rules.d")).unwrap();
        assert_eq!(names.count(), 1, "nothing else is left behind");
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let occupied = dir.path().join("file");
        fs::write(&occupied, "").unwrap();
        for place in [occupied, dir.path().join("no/parent")] {
            let file = RulesFile::new(&place, "60-rma-devices.rules");
            let text = file.write("# rules\n").unwrap_err().to_string();
            assert!(text.contains("60-rma-devices.rules"), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
        // A failed replacement leaves the old content.
        let file = RulesFile::new(dir.path(), "60-rma-devices.rules");
        file.write("# old\n").unwrap();
        fs::create_dir(dir.path().join("60-rma-devices.rules.tmp")).unwrap();
        assert!(file.write("# new\n").is_err());
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "# old\n");
    }
}
