//! The files of `docs/crt-format.md` on disk: a host's table, a unit's registers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::mmap::MmapStorage;
use super::{beside, sync_directory_of};
use crate::crt::image::{FORMAT_VERSION, Health, MemoryStorage, RootState};
use crate::crt::{
    ImageError, ImageInfo, ImageKind, RegistersChange, RegistersImage, StoredRegisters, Table,
    TableChange, TableImage, Violation, rules,
};
use crate::wire::{ClusterName, Guid, Settings, TableStamp};

/// Name of the table file in a host's state directory.
pub const CRT_FILE: &str = "crt";
/// Name of the registers file in a unit's state directory.
pub const REGISTERS_FILE: &str = "registers";
/// How often a reader tries while a writer changes the file under it.
const READ_ATTEMPTS: u32 = 64;

/// Why a file cannot be used. Its text is one line: which file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process writes the file.
    #[error("{}: another process uses this file; stop it, or choose another --state-dir", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The content is not what it should be.
    #[error("{}: {source}{}", path.display(), advice(*kind, source))]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        kind: ImageKind,
        /// What is wrong.
        source: ImageError,
    },
}

/// What to do about a bad file.
fn advice(kind: ImageKind, error: &ImageError) -> String {
    let elsewhere = match kind {
        ImageKind::Crt => {
            "remove the file: the table comes back from the other hosts and the units"
        }
        ImageKind::Registers => {
            "put a whole copy back, or remove the file: the unit then serves no I/O until its \
             registers are restored from a cluster resource table"
        }
        ImageKind::Vote => {
            "remove the file: for six seconds no new allocation session gets this vote"
        }
    };
    match error {
        ImageError::Io { .. } | ImageError::TooLong { .. } | ImageError::Full => String::new(),
        ImageError::NotImage | ImageError::Kind { .. } => {
            "; remove it or choose another --state-dir".to_owned()
        }
        ImageError::Version { .. } => {
            format!("; use the rma that wrote it, or {elsewhere}")
        }
        ImageError::Owner { found, .. } => {
            format!("; set guid = \"{found}\", or {elsewhere}")
        }
        ImageError::Cluster { found, .. } => {
            format!("; remove the file or set cluster = \"{found}\"")
        }
        ImageError::Truncated { .. }
        | ImageError::Roots
        | ImageError::Page { .. }
        | ImageError::Record { .. }
        | ImageError::Meta(_) => format!("; {elsewhere}"),
    }
}

pub(super) fn bad(path: &Path, kind: ImageKind) -> impl Fn(ImageError) -> StoreError {
    move |source| StoreError::Content {
        path: path.to_owned(),
        kind,
        source,
    }
}

fn not_opened(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock => StoreError::InUse { path },
            _ => StoreError::Io {
                path,
                doing,
                source,
            },
        }
    }
}

/// Opens and locks the file at `path`; `None` where there is none.
pub(super) fn open_storage(path: &Path) -> Result<Option<MmapStorage>, StoreError> {
    match MmapStorage::open(path) {
        Ok(storage) => Ok(Some(storage)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(not_opened(path, "open it")(error)),
    }
}

/// Creates the file at `path` with what `write` makes of it: beside its place first, so that there
/// is a whole file or none.
pub(super) fn create<T>(
    path: &Path,
    write: impl FnOnce(MmapStorage) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let new = beside(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(not_opened(path, "create its directory"))?;
    }
    let storage = MmapStorage::create(&new).map_err(not_opened(path, "create it"))?;
    if path.exists() {
        // Another process has put it there meanwhile, and is not done with it.
        return Err(StoreError::InUse {
            path: path.to_owned(),
        });
    }
    let written = write(storage)?;
    fs::rename(&new, path).map_err(not_opened(path, "put it in its place"))?;
    sync_directory_of(path).map_err(not_opened(path, "make it durable"))?;
    Ok(written)
}

/// The date and time for people, seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_secs())
}

/// A host's cluster resource table on disk, open for its one writer.
#[derive(Debug)]
pub struct CrtFile {
    path: PathBuf,
    image: TableImage<MmapStorage>,
}

impl CrtFile {
    /// Opens the table of host `owner`, or creates an empty one where there is no file. `cluster`
    /// NONE takes whatever cluster the file is of; a file of no cluster takes `cluster`.
    pub fn open(
        path: &Path,
        owner: Guid,
        cluster: ClusterName,
    ) -> Result<(Self, Table), StoreError> {
        let bad = bad(path, ImageKind::Crt);
        let (image, table) = if let Some(storage) = open_storage(path)? {
            TableImage::open(storage, Some(owner), cluster).map_err(bad)?
        } else {
            let image = create(path, |storage| {
                TableImage::create(storage, owner, cluster, now_s()).map_err(bad)
            })?;
            (image, Table::new())
        };
        let path = path.to_owned();
        Ok((Self { path, image }, table))
    }

    /// The cluster that the file is of; none where that is not known yet.
    pub const fn cluster(&self) -> ClusterName {
        self.image.cluster()
    }

    /// Makes the file one of `cluster`, with the next commit. Where it was one of another cluster,
    /// that commit should be a [`CrtFile::replace`].
    pub const fn set_cluster(&mut self, cluster: ClusterName) {
        self.image.set_cluster(cluster);
    }

    /// Makes the rows of `changed` as they are in `table` (those it lacks: gone), its settings and
    /// its stamps durable, all or nothing. After an error the file holds what it held before, or
    /// (where the last write may have reached the disk) the new table as a whole; the same changes
    /// can be committed again.
    pub fn commit(&mut self, table: &Table, changed: &[Guid]) -> Result<(), StoreError> {
        self.image
            .commit(table, changed, now_s())
            .map_err(bad(&self.path, ImageKind::Crt))
    }

    /// As [`CrtFile::commit`], of what a table was when `change` was made of it.
    pub fn apply(&mut self, change: TableChange) -> Result<(), StoreError> {
        self.image
            .apply(change, now_s())
            .map_err(bad(&self.path, ImageKind::Crt))
    }

    /// As [`CrtFile::commit`], of every row.
    pub fn replace(&mut self, table: &Table) -> Result<(), StoreError> {
        self.image
            .replace(table, now_s())
            .map_err(bad(&self.path, ImageKind::Crt))
    }

    /// What the file says about itself.
    pub fn info(&self) -> ImageInfo {
        self.image.info()
    }
}

/// A consistent reading of a table file, with or without a daemon that writes it.
#[derive(Debug)]
pub struct Snapshot {
    /// The table.
    pub table: Table,
    /// What the file says about itself.
    pub info: ImageInfo,
    /// How its roots and pages were found.
    pub health: Health,
}

impl Snapshot {
    /// Reads the table file at `path` without a lock; while it changes, again.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let mut attempt = 1;
        loop {
            match Self::read_once(path) {
                Err(StoreError::Content { source, .. })
                    if source.is_transient() && attempt < READ_ATTEMPTS =>
                {
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    fn read_once(path: &Path) -> Result<Self, StoreError> {
        let bytes = fs::read(path).map_err(not_opened(path, "read it"))?;
        let (image, table) = TableImage::open(MemoryStorage(bytes), None, ClusterName::NONE)
            .map_err(bad(path, ImageKind::Crt))?;
        Ok(Self {
            table,
            info: image.info(),
            health: image.health(),
        })
    }
}

/// A unit's ownership registers on disk, open for its one writer.
#[derive(Debug)]
pub struct RegistersFile {
    path: PathBuf,
    image: RegistersImage<MmapStorage>,
}

impl RegistersFile {
    /// Opens the registers of `unit`. On the first start ever (`first_start`) a missing file is
    /// created with no registers; later it is a loss: the registers are `None`, at this start and
    /// the following ones, until [`RegistersFile::store`] has restored some.
    pub fn open(
        path: &Path,
        unit: Guid,
        first_start: bool,
    ) -> Result<(Self, Option<StoredRegisters>), StoreError> {
        let bad = bad(path, ImageKind::Registers);
        let (image, registers) = if let Some(storage) = open_storage(path)? {
            RegistersImage::open(storage, unit).map_err(bad)?
        } else {
            let image = create(path, |storage| {
                RegistersImage::create(storage, unit, !first_start, now_s()).map_err(bad)
            })?;
            (image, first_start.then(StoredRegisters::default))
        };
        let path = path.to_owned();
        Ok((Self { path, image }, registers))
    }

    /// Makes a change durable, all or nothing. With it lost registers count as restored. After an
    /// error as [`CrtFile::commit`].
    pub fn store(&mut self, change: &RegistersChange) -> Result<(), StoreError> {
        self.image
            .store(change, now_s())
            .map_err(bad(&self.path, ImageKind::Registers))
    }
}

/// What [`verify`] found in a file whose every page, root and row is readable.
#[derive(Debug)]
pub struct Report {
    /// The file's format version.
    pub format_version: u32,
    /// What the file says about itself.
    pub info: ImageInfo,
    /// How roots and pages were found.
    pub health: Health,
    /// The table's stamp.
    pub stamp: TableStamp,
    /// The version up to which purged rows are gone.
    pub floor: TableStamp,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// Rows, tombstones included.
    pub row_count: usize,
    /// Tombstones.
    pub invalid_count: usize,
    /// Digest of settings and rows: the same on every host whose table is equal.
    pub digest: u128,
    /// Rows that break the ownership hierarchy (I5).
    pub violations: Vec<Violation>,
    /// Rows whose parent is not in the table.
    pub orphans: Vec<Guid>,
}

impl Report {
    /// Whether nothing is wrong. A torn root is not: a crash during a commit leaves one, and the
    /// other root has the table.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.orphans.is_empty()
    }

    /// Whether a crash has left one root torn; the next commit writes it anew.
    pub fn has_torn_root(&self) -> bool {
        self.health.roots.contains(&RootState::Torn)
    }
}

/// Reads the table file at `path` whole and checks everything in it: roots, pages, checksums,
/// order, rows, hierarchy. Works beside a daemon that writes the file.
pub fn verify(path: &Path) -> Result<Report, StoreError> {
    let Snapshot {
        table,
        info,
        health,
    } = Snapshot::read(path)?;
    Ok(Report {
        format_version: FORMAT_VERSION,
        info,
        health,
        stamp: table.stamp(),
        floor: table.floor(),
        settings: *table.settings(),
        row_count: table.len(),
        invalid_count: table.rows().filter(|row| !row.is_valid()).count(),
        digest: table.digest(),
        violations: rules::violations(&table).collect(),
        orphans: rules::orphans(&table).map(|row| row.guid).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::OwnershipRegister;
    use crate::wire::{EntityType, Epoch, Ownership, OwnershipStamp, Row};

    const HOST: Guid = Guid(0x108);
    const UNIT: Guid = Guid(0x112);

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn row(guid: u128, name: &str) -> Row {
        let mut row = Row::new(Guid(guid), EntityType::Host);
        row.name = name.into();
        row
    }

    #[test]
    fn a_table_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/crt");
        let (mut file, mut table) = CrtFile::open(&path, HOST, cluster("A")).unwrap();
        assert!(table.is_empty());
        let changed = table.insert(row(1, "108"));
        table.publish(3, HOST);
        file.commit(&table, &changed).unwrap();
        assert_eq!(
            Snapshot::read(&path).unwrap().table.summary(),
            table.summary()
        );
        table.insert(row(2, "110"));
        table.publish(3, HOST);
        file.replace(&table).unwrap();
        let gone = table.remove(Guid(1));
        table.publish(3, HOST);
        file.commit(&table, &gone).unwrap();
        drop(file);

        let (file, again) = CrtFile::open(&path, HOST, ClusterName::NONE).unwrap();
        assert_eq!(again.summary(), table.summary());
        assert_eq!(again.highest_stamp(), table.highest_stamp());
        assert_eq!(file.cluster(), cluster("A"));
        let report = verify(&path).unwrap();
        assert!(report.is_good() && !report.has_torn_root());
        assert_eq!((report.row_count, report.digest), (1, table.digest()));
    }

    #[test]
    fn a_file_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crt");
        let first = CrtFile::open(&path, HOST, cluster("A")).unwrap();
        let text = CrtFile::open(&path, HOST, cluster("A"))
            .unwrap_err()
            .to_string();
        assert!(
            text.ends_with(
                "another process uses this file; stop it, or choose another --state-dir"
            )
        );
        drop(first);
        CrtFile::open(&path, HOST, cluster("A")).unwrap();
    }

    #[test]
    fn a_wrong_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crt");
        drop(CrtFile::open(&path, HOST, cluster("B")).unwrap());
        let whole = fs::read(&path).unwrap();
        let at = path.display();
        let open = |owner, name| {
            let text = CrtFile::open(&path, owner, cluster(name))
                .unwrap_err()
                .to_string();
            assert_eq!(text.lines().count(), 1);
            text
        };
        assert_eq!(
            open(HOST, "A"),
            format!(
                "{at}: this table belongs to cluster B, not A; remove the file or set cluster = \"B\""
            )
        );
        assert!(open(UNIT, "B").contains(&format!("belongs to {HOST}, not to {UNIT}")));
        let text = RegistersFile::open(&path, HOST, true)
            .unwrap_err()
            .to_string();
        assert!(text.contains("holds a cluster resource table, not ownership registers"));

        let mut cases: Vec<(Vec<u8>, &str)> = vec![
            (Vec::new(), "this is not an rma file"),
            (b"hello".to_vec(), "this is not an rma file"),
            (vec![0; 9000], "this is not an rma file"),
            (whole[..5000].to_vec(), "truncated: 5000 of 8192 bytes"),
            (
                whole[..8192].to_vec(),
                "this file is truncated: 8192 of 262144 bytes",
            ),
        ];
        let mut torn = whole.clone();
        torn[4096 + 100] ^= 1;
        cases.push((torn, "neither root is whole"));
        let mut later = whole.clone();
        later[4096 + 11] = 9;
        let crc = crc32fast::hash(&later[4096..8188]);
        later[8188..8192].copy_from_slice(&crc.to_be_bytes());
        cases.push((later, "format version 9, and this program reads version 1"));
        for (bytes, what) in cases {
            fs::write(&path, &bytes).unwrap();
            let text = open(HOST, "B");
            assert!(text.contains(what), "{text}");
            assert!(text.contains("remove"), "{text}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "changed: {text}");
            assert!(verify(&path).is_err());
        }
    }

    #[test]
    fn a_decayed_page_is_found_and_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crt");
        let (mut file, mut table) = CrtFile::open(&path, HOST, cluster("A")).unwrap();
        let changed = table.insert(row(1, "108"));
        file.commit(&table, &changed).unwrap();
        drop(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[2 * 4096 + 40] ^= 4;
        fs::write(&path, bytes).unwrap();
        let text = verify(&path).unwrap_err().to_string();
        assert!(
            text.contains("page 2: wrong checksum; remove the file"),
            "{text}"
        );
    }

    fn register(row: u128, epoch: u64) -> OwnershipRegister {
        OwnershipRegister {
            row: Guid(row),
            ownership: Ownership::Dedicated(HOST),
            owned: OwnershipStamp {
                epoch: Epoch(epoch),
                term: 4,
                writer: HOST,
            },
            extent: None,
        }
    }

    fn change(registers: &[OwnershipRegister], term: u64) -> RegistersChange {
        RegistersChange {
            registers: registers.to_vec(),
            term,
            home: cluster("A"),
            assignment: 2,
            ..RegistersChange::default()
        }
    }

    #[test]
    fn registers_that_are_lost_stay_lost_until_restored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registers");
        let (mut file, found) = RegistersFile::open(&path, UNIT, true).unwrap();
        let mut stored = StoredRegisters::default();
        assert_eq!(found, Some(stored.clone()));
        let changes = [
            change(&[register(5, 1), register(6, 1)], 4),
            change(&[register(5, 2)], 3),
        ];
        for change in &changes {
            file.store(change).unwrap();
            stored.apply(change);
        }
        assert_eq!((stored.registers.len(), stored.term), (2, 4));
        drop(file);
        let (file, found) = RegistersFile::open(&path, UNIT, false).unwrap();
        assert_eq!(found, Some(stored));
        drop(file);

        fs::remove_file(&path).unwrap();
        assert_eq!(RegistersFile::open(&path, UNIT, false).unwrap().1, None);
        let (mut file, found) = RegistersFile::open(&path, UNIT, false).unwrap();
        assert_eq!(found, None);
        file.store(&change(&[], 9)).unwrap();
        drop(file);
        let (_, found) = RegistersFile::open(&path, UNIT, false).unwrap();
        let restored = StoredRegisters {
            term: 9,
            home: cluster("A"),
            assignment: 2,
            ..StoredRegisters::default()
        };
        assert_eq!(found, Some(restored));
    }

    #[test]
    fn readers_beside_the_writer_see_whole_tables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crt");
        let (mut file, mut table) = CrtFile::open(&path, HOST, cluster("A")).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = || {
                let mut seen = 0;
                loop {
                    let last = done.load(std::sync::atomic::Ordering::Acquire);
                    let table = Snapshot::read(&path).unwrap().table;
                    let counter = table.stamp().counter;
                    let generation = counter.to_string();
                    assert!(counter >= seen, "back in time");
                    assert!(table.rows().all(|row| row.name == generation), "a mixture");
                    assert!(counter == 0 || table.len() == 60);
                    seen = counter;
                    if last {
                        return seen;
                    }
                }
            };
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            for generation in 1..=60 {
                let mut changed = Vec::new();
                for guid in 1..=60 {
                    changed.extend(table.insert(row(guid, &generation.to_string())));
                }
                table.publish(1, HOST);
                file.commit(&table, &changed).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
            for reader in readers {
                assert_eq!(reader.join().unwrap(), 60);
            }
        });
    }
}
