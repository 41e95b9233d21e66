//! What the media of `rma-unitd` do at once, on the way of the frame that asks for it.

use super::unitd_media::Media;
use crate::backend::Backend;
use crate::unit::{AtOnce, DiskError};
use crate::wire::Guid;

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

    /// Begins an operation of so many bytes, unless it has done all it does.
    fn begins(&mut self, bytes: usize) -> Option<()> {
        (!self.is_used_up()).then_some(())?;
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        Some(())
    }
}

impl AtOnce for Prompt<'_> {
    fn read_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<(), DiskError>> {
        self.begins(into.len())?;
        let served = self.media.get(device)?;
        served.backend.read_at_once(offset, into)
    }

    fn write_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<(), DiskError>> {
        self.begins(data.len())?;
        let medium = self.media.medium_mut(device)?;
        medium.write_at_once(offset, data)
    }
}
