//! The file of `docs/crt-format.md` that a voter of the allocation lease remembers its promises in.

use std::path::{Path, PathBuf};

use super::crt_file::{StoreError, bad, create, now_s, open_storage};
use super::mmap::MmapStorage;
use crate::crt::ImageKind;
use crate::lease::{StoredVote, VoteImage};
use crate::wire::Guid;

/// Name of the file in a host's or unit's state directory.
pub const VOTE_FILE: &str = "vote";

/// A voter's memory on disk, open for its one writer.
#[derive(Debug)]
pub struct VoteFile {
    path: PathBuf,
    image: VoteImage<MmapStorage>,
}

impl VoteFile {
    /// Opens what `owner` has stored, or creates the file where there is none: at the `first_start`
    /// ever as that of a voter that has promised nothing, otherwise as that of one that has lost what
    /// it promised, which is `None` until [`VoteFile::store`] has stored something.
    pub fn open(
        path: &Path,
        owner: Guid,
        first_start: bool,
    ) -> Result<(Self, Option<StoredVote>), StoreError> {
        let bad = bad(path, ImageKind::Vote);
        let (image, vote) = if let Some(storage) = open_storage(path)? {
            VoteImage::open(storage, owner).map_err(bad)?
        } else {
            let image = create(path, |storage| {
                VoteImage::create(storage, owner, !first_start, now_s()).map_err(bad)
            })?;
            (image, first_start.then(StoredVote::default))
        };
        let path = path.to_owned();
        Ok((Self { path, image }, vote))
    }

    /// Makes this durable, all or nothing. After an error the file holds what it held before, or
    /// (where the last write may have reached the disk) this; it can be stored again.
    pub fn store(&mut self, vote: &StoredVote) -> Result<(), StoreError> {
        self.image
            .store(vote, now_s())
            .map_err(bad(&self.path, ImageKind::Vote))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_survives_its_file_and_a_lost_one_is_known_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vote");
        let owner = Guid(7);
        let (mut file, found) = VoteFile::open(&path, owner, true).unwrap();
        assert_eq!(found, Some(StoredVote::default()));
        let vote = StoredVote {
            promised: 5,
            ..StoredVote::default()
        };
        file.store(&vote).unwrap();
        assert!(matches!(
            VoteFile::open(&path, owner, false),
            Err(StoreError::InUse { .. })
        ));
        drop(file);
        let (file, found) = VoteFile::open(&path, owner, false).unwrap();
        assert_eq!(found, Some(vote));
        drop(file);

        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            let (_file, found) = VoteFile::open(&path, owner, false).unwrap();
            assert_eq!(found, None);
        }
        std::fs::write(&path, "hello").unwrap();
        let text = VoteFile::open(&path, owner, false).unwrap_err().to_string();
        assert!(text.contains("not an rma file"), "{text}");
    }
}
