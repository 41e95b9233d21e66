//! What the media of `rma-unitd` do at once, on the way of the frame that asks for it.

use super::unitd_media::Media;
use crate::backend::Backend;
use crate::unit::{AtOnce, DiskError};
use crate::wire::{Guid, Tail};

/// Media that are asked while frames are taken, until so much has been read and written that it should be
/// answered before more is.
pub(super) struct Prompt<'a> {
    media: &'a mut Media,
    left_bytes: usize,
}

impl<'a> Prompt<'a> {
    /// Reads and writes up to `most_bytes`, and what is begun before that.
    pub(super) const fn new(media: &'a mut Media, most_bytes: usize) -> Self {
        Self {
            media,
            left_bytes: most_bytes,
        }
    }

    /// Whether it has done all it does.
    pub(super) const fn is_used_up(&self) -> bool {
        self.left_bytes == 0
    }

    /// What one of the media did at once with so many bytes, which count then; it is not asked where all is done
    /// that is.
    fn ask<T>(&mut self, bytes: usize, does: impl FnOnce(&mut Media) -> Option<T>) -> Option<T> {
        if self.is_used_up() {
            return None;
        }
        let outcome = does(self.media)?;
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        Some(outcome)
    }
}

impl AtOnce for Prompt<'_> {
    // That takes no time whatever the length: what it gives is looked at when it is sent.
    fn lend(&mut self, device: Guid, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        self.media.get(device)?.backend.lend(offset, len)
    }

    fn is_lent(&self, device: Guid, offset: u64, len: u64) -> bool {
        let served = self.media.get(device);
        served.is_some_and(|served| served.backend.is_lent(offset, len))
    }

    fn is_lent_as(&self, lent: &Tail, device: Guid, offset: u64, len: u64) -> bool {
        let served = self.media.get(device);
        served.is_some_and(|served| served.backend.is_lent_as(lent, offset, len))
    }

    fn read_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<(), DiskError>> {
        self.ask(into.len(), |media| {
            media.get(device)?.backend.read_at_once(offset, into)
        })
    }

    fn write_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        self.ask(data.len(), |media| {
            let medium = media.medium_mut(device)?;
            medium.write_at_once(offset, data, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_begun_is_done_and_nothing_more_is_asked_for_behind_that() {
        let mut media = Media::default();
        let mut prompt = Prompt::new(&mut media, 6000);
        assert_eq!(prompt.ask(4096, |_| Some("read")), Some("read"));
        assert_eq!(prompt.ask(4096, |_| None::<()>), None);
        assert!(!prompt.is_used_up(), "what was not done does not count");
        assert_eq!(prompt.ask(4096, |_| Some("read")), Some("read"));
        assert!(prompt.is_used_up());
        let ask_in_vain = |_: &mut Media| -> Option<()> { panic!("asked for more") };
        assert_eq!(prompt.ask(512, ask_in_vain), None);
    }
}
