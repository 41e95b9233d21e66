//! What the media of `rma-unitd` do at once, on the way of the frame that asks for it.

use super::unitd_media::{Media, Metered};
use crate::backend::Backend;
use crate::unit::{AtOnce, DiskError};
use crate::wire::Guid;

/// Media that are asked while frames are taken, until so much has been read and written that it should be
/// answered before more is.
pub(super) struct Prompt<'a> {
    media: &'a Media,
    left_bytes: usize,
}

impl<'a> Prompt<'a> {
    /// Reads and writes up to `most_bytes`, and what is begun before that.
    pub(super) const fn new(media: &'a Media, most_bytes: usize) -> Self {
        Self {
            media,
            left_bytes: most_bytes,
        }
    }

    /// Whether it has done all it does.
    pub(super) const fn is_used_up(&self) -> bool {
        self.left_bytes == 0
    }

    fn backend(&mut self, device: Guid, bytes: usize) -> Option<&'a Metered> {
        if self.is_used_up() {
            return None;
        }
        let served = self.media.get(device)?;
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        Some(&*served.backend)
    }
}

impl AtOnce for Prompt<'_> {
    fn read_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<(), DiskError>> {
        self.backend(device, into.len())?.read_at_once(offset, into)
    }

    fn write_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<(), DiskError>> {
        self.backend(device, data.len())?
            .write_at_once(offset, data)
    }
}
