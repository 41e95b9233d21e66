//! What a voter remembers, and the image that it lies in.

use crate::crt::image::{Commit, Expected};
use crate::crt::{Image, ImageError, ImageKind, Storage};
use crate::wire::message::{Holder, get_holder, put_holder};
use crate::wire::{ClusterName, DecodeError, Guid, Reader, Settings, Wire, Writer};

/// What a voter remembers across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StoredVote {
    /// The highest term that it has promised.
    pub promised: u64,
    /// The session that it has granted last, unless that was released.
    pub holder: Option<Holder>,
    /// The newest cluster-wide settings that it was told.
    pub settings: Settings,
}

impl Wire for StoredVote {
    fn put(&self, w: &mut Writer) {
        w.put(&self.promised);
        w.put(&self.settings);
        put_holder(w, self.holder.as_ref());
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            promised: r.get()?,
            settings: r.get()?,
            holder: get_holder(r, "holders")?,
        })
    }
}

/// A voter's memory in a [`Storage`]: an image without records.
#[derive(Debug)]
pub struct VoteImage<S> {
    image: Image<S>,
}

fn commit_of(meta: Vec<u8>, label_s: u64) -> Commit {
    Commit {
        records: Vec::new(),
        replace: false,
        cluster: ClusterName::NONE,
        meta,
        label_s,
    }
}

impl<S: Storage> VoteImage<S> {
    /// Writes a beginning over `storage`, which is empty: of a voter that has never promised
    /// anything, or (`lost`) of one that does not know what it has promised. `label_s` is the date
    /// and time for people, seconds since 1970, here and below.
    pub fn create(storage: S, owner: Guid, lost: bool, label_s: u64) -> Result<Self, ImageError> {
        let meta = if lost {
            Vec::new()
        } else {
            StoredVote::default().to_body()
        };
        let image = Image::create(storage, ImageKind::Vote, owner, commit_of(meta, label_s))?;
        Ok(Self { image })
    }

    /// Opens what `owner` has stored; `None` where that was lost and nothing has been stored since.
    /// What it gives is durable.
    pub fn open(storage: S, owner: Guid) -> Result<(Self, Option<StoredVote>), ImageError> {
        let expected = Expected {
            kind: ImageKind::Vote,
            owner: Some(owner),
            cluster: ClusterName::NONE,
        };
        let none = |_, _: &[u8]| Err(DecodeError::TooLarge("records"));
        let mut image = Image::open(storage, &expected, none)?;
        let meta = image.info().meta;
        let vote = if meta.is_empty() {
            None
        } else {
            Some(StoredVote::from_body(&meta).map_err(ImageError::Meta)?)
        };
        image.confirm()?;
        Ok((Self { image }, vote))
    }

    /// Makes this durable, all or nothing.
    pub fn store(&mut self, vote: &StoredVote, label_s: u64) -> Result<(), ImageError> {
        self.image.commit(commit_of(vote.to_body(), label_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crt::image::MemoryStorage;
    use crate::wire::message::Purpose;

    #[test]
    fn what_is_stored_is_found_again_and_what_was_lost_is_known_to_be_lost() {
        let owner = Guid(7);
        let image = VoteImage::create(MemoryStorage::default(), owner, false, 0).unwrap();
        let (mut image, found) = VoteImage::open(image.image.into_storage(), owner).unwrap();
        assert_eq!(found, Some(StoredVote::default()));
        let vote = StoredVote {
            promised: 9,
            holder: Some(Holder {
                term: 9,
                host: Guid(8),
                purpose: Purpose::Work,
                process: 3,
                name: "x".repeat(63),
                user: "y".repeat(63),
            }),
            settings: Settings::default(),
        };
        image.store(&vote, 1).unwrap();
        let storage = image.image.into_storage();
        assert!(VoteImage::open(MemoryStorage(storage.0.clone()), Guid(8)).is_err());
        assert_eq!(VoteImage::open(storage, owner).unwrap().1, Some(vote));

        let image = VoteImage::create(MemoryStorage::default(), owner, true, 0).unwrap();
        let (mut image, found) = VoteImage::open(image.image.into_storage(), owner).unwrap();
        assert_eq!(found, None);
        image.store(&StoredVote::default(), 1).unwrap();
        let found = VoteImage::open(image.image.into_storage(), owner)
            .unwrap()
            .1;
        assert_eq!(found, Some(StoredVote::default()));
    }
}
