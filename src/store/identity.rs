//! Who this host or unit is, and how often it has started: a small file in the state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::wire::{Guid, Incarnation};

/// Name of the identity file in the state directory.
pub const IDENTITY_FILE: &str = "identity.toml";
/// Name of the file whose lock keeps a second process out of the state directory.
const LOCK_FILE: &str = "lock";
/// The most bytes of an identity file.
const MAX_BYTES: u64 = 4096;

/// An entity's GUID and incarnation, durable before [`Identity::open`] returns them. While it
/// lives no other process can open the same state directory.
#[derive(Debug)]
pub struct Identity {
    path: PathBuf,
    guid: Guid,
    stored: Stored,
    _lock: Flock<File>,
}

/// The file's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    guid: String,
    incarnation: u64,
    /// Whether the state directory is in use.
    settled: bool,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system failed.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process uses the state directory.
    #[error("{}: another process uses this state directory; stop it, or give this one a --state-dir of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file does not parse.
    #[error("{}: not an identity ({reason}); put guid = \"…\", incarnation = N (larger than ever before) and settled = true into it, or remove the whole state directory to begin as somebody new", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration names another entity.
    #[error("{}: this state directory belongs to {stored}, and the configuration says guid = \"{configured}\"; set guid = \"{stored}\", or choose another --state-dir", path.display())]
    OtherGuid {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        stored: Guid,
        /// What the configuration says.
        configured: Guid,
    },
}

impl Identity {
    /// Reads the identity in `state_dir` (which is created where it is missing), counts the
    /// incarnation up, and makes that durable. The first start generates a GUID, unless
    /// `configured` says which; another configured GUID than the stored one is an error.
    pub fn open(state_dir: &Path, configured: Option<Guid>) -> Result<Self, IdentityError> {
        fs::create_dir_all(state_dir).map_err(io(state_dir, "create the directory"))?;
        let lock = lock(state_dir)?;
        let path = state_dir.join(IDENTITY_FILE);
        let (guid, mut stored) = match (read(&path)?, configured) {
            (Some((stored, _)), Some(configured)) if stored != configured => {
                return Err(IdentityError::OtherGuid {
                    path,
                    stored,
                    configured,
                });
            }
            (Some(found), _) => found,
            (None, configured) => {
                let guid = match configured {
                    Some(guid) => guid,
                    None => generate().map_err(io(&path, "generate a GUID"))?,
                };
                let stored = Stored {
                    guid: guid.to_string(),
                    incarnation: lost_incarnations(configured),
                    settled: false,
                };
                (guid, stored)
            }
        };
        stored.incarnation = stored.incarnation.saturating_add(1);
        write(&path, &stored)?;
        Ok(Self {
            path,
            guid,
            stored,
            _lock: lock,
        })
    }

    /// The entity.
    pub const fn guid(&self) -> Guid {
        self.guid
    }

    /// Counts the entity's starts. The first of a generated GUID is 1; the first of a configured
    /// one is larger than all that it may have had in a state directory that was lost.
    pub const fn incarnation(&self) -> Incarnation {
        Incarnation(self.stored.incarnation)
    }

    /// Whether the state directory has never been in use ([`Identity::settle`]).
    pub const fn is_first_start(&self) -> bool {
        !self.stored.settled
    }

    /// Notes durably that the state directory is in use: from now on a missing registers file is
    /// a loss, not a beginning.
    pub fn settle(&mut self) -> Result<(), IdentityError> {
        if !self.stored.settled {
            let settled = Stored {
                settled: true,
                ..self.stored.clone()
            };
            write(&self.path, &settled)?;
            self.stored = settled;
        }
        Ok(())
    }
}

fn io<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io {
        path: path.to_owned(),
        doing,
        source,
    }
}

fn lock(state_dir: &Path) -> Result<Flock<File>, IdentityError> {
    let path = state_dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io(&path, "open the lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| IdentityError::InUse {
        path: state_dir.to_owned(),
    })
}

fn read(path: &Path) -> Result<Option<(Guid, Stored)>, IdentityError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path, "read it")(error)),
    };
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(io(path, "read it"))?;
    let damaged = |reason: Box<dyn std::error::Error + Send + Sync>| IdentityError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let stored: Stored =
        toml::from_str(&text).map_err(|error| damaged(error.message().to_owned().into()))?;
    let guid: Guid = stored.guid.parse().map_err(|e| damaged(Box::new(e)))?;
    if guid.is_nil() {
        return Err(damaged("the GUID is zero".into()));
    }
    Ok(Some((guid, stored)))
}

/// Replaces the file as a whole: after a crash it is the old one or the new one.
fn write(path: &Path, stored: &Stored) -> Result<(), IdentityError> {
    let text = format!(
        "# Who this is. A copy on another machine would be taken for this one.\n{}",
        toml::to_string(stored).map_err(|error| io(path, "write it")(io::Error::other(error)))?
    );
    super::replace_file(path, text.as_bytes()).map_err(io(path, "write it"))
}

/// A random GUID (RFC 9562, version 4).
fn generate() -> io::Result<Guid> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let bits = u128::from_be_bytes(bytes);
    let version = 0xf << 76;
    let variant = 0b11 << 62;
    Ok(Guid((bits & !version & !variant) | 4 << 76 | 0b10 << 62))
}

/// The incarnations that a configured GUID may have had in a state directory that is lost: fewer
/// than one a second. Otherwise it would begin again below what everybody remembers of it.
fn lost_incarnations(configured: Option<Guid>) -> u64 {
    match (configured, SystemTime::UNIX_EPOCH.elapsed()) {
        (Some(_), Ok(since)) => since.as_secs(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_counts() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let mut first = Identity::open(&dir, None).unwrap();
        let guid = first.guid();
        assert!(first.is_first_start());
        assert_eq!(first.incarnation(), Incarnation(1));
        assert_eq!(guid.0 >> 76 & 0xf, 4);
        drop(first);

        first = Identity::open(&dir, Some(guid)).unwrap();
        assert!(first.is_first_start(), "not settled yet");
        first.settle().unwrap();
        drop(first);

        let third = Identity::open(&dir, None).unwrap();
        assert_eq!((third.guid(), third.incarnation()), (guid, Incarnation(3)));
        assert!(!third.is_first_start());
    }

    #[test]
    fn a_lost_identity_does_not_begin_below_what_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let configured = Some(Guid(7));
        let mut before = Identity::open(dir.path(), configured)
            .unwrap()
            .incarnation();
        for _ in 0..3 {
            before = before.max(
                Identity::open(dir.path(), configured)
                    .unwrap()
                    .incarnation(),
            );
        }
        assert!(before.0 > 1_700_000_000);
        // One a second is the most there can have been: three in no time at all are not.
        fs::remove_file(dir.path().join(IDENTITY_FILE)).unwrap();
        let after = Identity::open(dir.path(), configured)
            .unwrap()
            .incarnation();
        assert!(after.0 + 4 > before.0);
    }

    #[test]
    fn what_is_wrong_takes_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), Some(Guid(7))).unwrap();
        let text = |configured| {
            let text = Identity::open(dir.path(), configured)
                .unwrap_err()
                .to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            text
        };
        assert!(text(None).contains("another process uses this state directory"));
        drop(first);
        assert!(text(Some(Guid(8))).contains("belongs to 00000000-0000-0000-0000-000000000007"));
        for content in [
            "",
            "guid = 3",
            "guid = \"x\"\nincarnation = 1\nsettled = true",
            "\u{1}",
        ] {
            fs::write(dir.path().join(IDENTITY_FILE), content).unwrap();
            assert!(text(None).contains("not an identity"), "{content}");
        }
    }
}
