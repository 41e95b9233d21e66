//! The man pages, from the same declarations as the command lines.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use clap::Command;

/// Writes the pages of `rma` and its verbs (section 1) and of the daemons (section 8) into `dir`, which
/// is made where it is missing.
pub(super) fn write(
    dir: &Path,
    daemons: impl IntoIterator<Item = Command>,
    rma: Command,
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for daemon in daemons {
        let mut page = File::create(dir.join(format!("{}.8", daemon.get_name())))?;
        clap_mangen::Man::new(daemon)
            .section("8")
            .render(&mut page)?;
    }
    clap_mangen::generate_to(rma, dir)
}
