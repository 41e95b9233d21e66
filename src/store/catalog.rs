//! The fabric services database (Fig. 3) in an SQLite file that people can read with `sqlite3`.
//!
//! One process at a time: the file is locked while it is open. A transaction is durable when
//! [`SqliteCatalog::commit`] returns: `synchronous = FULL` with a rollback journal that is truncated
//! and synced to commit (a deleted journal would need its directory synced as well).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior, params};

use super::kept;
use crate::crt::{Table, TableChange};
use crate::fabric::GuestRow;
use crate::fabric::catalog::{Catalog, CatalogError, Change, Entity, Snapshot};
use crate::wire::{
    ClusterName, EntityType, Epoch, Guid, Incarnation, Mac, ObservationStamp, Ownership,
};

/// The file's name within the state directory.
pub const FILE_NAME: &str = "fabric.db";
/// Version of the tables in the file (`PRAGMA user_version`).
pub const SCHEMA_VERSION: i32 = 2;
/// The version before, without guests and clusters' tables: such a file gets them when it is opened.
const VERSION_BEFORE: i32 = 1;
/// What marks a file as ours (`PRAGMA application_id`): "rmaF".
pub const APPLICATION_ID: i32 = 0x726d_6146;

const SCHEMA: &str = "
    CREATE TABLE catalog (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        version INTEGER NOT NULL,
        label TEXT NOT NULL
    ) STRICT;
    CREATE TABLE cluster (
        name TEXT PRIMARY KEY,
        version INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE entity (
        guid TEXT PRIMARY KEY,
        type TEXT NOT NULL CHECK (type IN ('host', 'unit')),
        address TEXT NOT NULL,
        name TEXT NOT NULL,
        cluster TEXT NOT NULL,
        requested TEXT NOT NULL,
        ownership TEXT NOT NULL CHECK (ownership IN ('unallocated', 'dedicated', 'shared')),
        owners TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        incarnation INTEGER NOT NULL,
        change INTEGER NOT NULL,
        version INTEGER NOT NULL,
        label TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO catalog VALUES (1, 0, '');
";

/// What version 2 has more than version 1, whose every assignment counts as the first.
const GUESTS: &str = "
    ALTER TABLE entity ADD COLUMN assignment INTEGER NOT NULL DEFAULT 0;
    UPDATE entity SET assignment = 1 WHERE cluster != '';
    CREATE TABLE guest (
        unit TEXT NOT NULL,
        cluster TEXT NOT NULL CHECK (cluster != ''),
        ownership TEXT NOT NULL CHECK (ownership IN ('unallocated', 'dedicated', 'shared')),
        owners TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        PRIMARY KEY (unit, cluster)
    ) STRICT, WITHOUT ROWID;
";

/// The database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{0}: in use by another process; stop that rma-fabricd or choose another state directory"
    )]
    InUse(PathBuf),
    /// It is something else.
    #[error(
        "{0}: not a fabric services database; move the file away or choose another state directory"
    )]
    Foreign(PathBuf),
    /// Its tables are of another version.
    #[error(
        "{path}: database of version {found}, this program reads {SCHEMA_VERSION}; run the program that wrote it"
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// It contradicts itself.
    #[error(
        "{path}: database corrupted ({what}); restore it from a copy, or move it away and assign clusters again"
    )]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// It cannot be read or written.
    #[error("{path}: cannot open the database: {source}; is the state directory writable?")]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// A value in the file is not what it can be.
#[derive(Debug, thiserror::Error)]
#[error("column {column} of {row} has the value '{value}'")]
struct BadValue {
    column: &'static str,
    row: String,
    value: String,
}

/// The database in a file.
#[derive(Debug)]
pub struct SqliteCatalog {
    connection: Connection,
}

impl SqliteCatalog {
    /// Opens the database at `path` and locks it, or makes it where there is none.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let fail = |e| explain(path, e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(fail)?;
        // Whoever holds the lock is another daemon, which holds it for as long as it runs.
        connection.busy_timeout(Duration::ZERO).map_err(fail)?;
        connection
            .execute_batch(
                "PRAGMA locking_mode = EXCLUSIVE;
                 PRAGMA synchronous = FULL;
                 PRAGMA trusted_schema = OFF;
                 PRAGMA cell_size_check = ON;",
            )
            .map_err(fail)?;
        create(&mut connection).map_err(fail)?;
        // Only now: the mode is read from the file, which a foreign one must not be changed for.
        let application = pragma(&connection, "application_id").map_err(fail)?;
        if application != APPLICATION_ID {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        let found = pragma(&connection, "user_version").map_err(fail)?;
        if found != SCHEMA_VERSION {
            return Err(OpenError::OtherVersion {
                path: path.to_owned(),
                found,
            });
        }
        let mode: String = connection
            .query_row("PRAGMA journal_mode = TRUNCATE", [], |row| row.get(0))
            .map_err(fail)?;
        let corrupted = |what: String| OpenError::Corrupted {
            path: path.to_owned(),
            what,
        };
        if mode != "truncate" {
            return Err(corrupted(format!("journal mode {mode}")));
        }
        let verdict: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(fail)?;
        if verdict != "ok" {
            let line = verdict.lines().last().unwrap_or_default().to_owned();
            return Err(corrupted(line));
        }
        let mut catalog = Self { connection };
        // What does not parse shows now, not at the first registration.
        let loaded = catalog.load().and_then(|_| catalog.load_tables());
        match loaded {
            Ok(_) => Ok(catalog),
            Err(CatalogError::Storage(source)) => Err(corrupted(source.to_string())),
            Err(e @ CatalogError::Conflict { .. }) => Err(corrupted(e.to_string())),
        }
    }
}

/// Takes the lock, makes the tables in an empty file, and brings older ones to this version.
fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 && pragma(&tx, "application_id")? == 0 && pragma(&tx, "user_version")? == 0 {
        tx.execute_batch(SCHEMA)?;
        tx.execute_batch(GUESTS)?;
        tx.execute_batch(kept::SCHEMA)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    } else if pragma(&tx, "application_id")? == APPLICATION_ID
        && pragma(&tx, "user_version")? == VERSION_BEFORE
    {
        // In one transaction: after a crash it is of the one version or the other.
        tx.execute_batch(GUESTS)?;
        tx.execute_batch(kept::SCHEMA)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    tx.commit()
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn explain(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse(path),
        Some(ErrorCode::NotADatabase) => OpenError::Foreign(path),
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupted {
            path,
            what: error.to_string(),
        },
        _ => OpenError::Storage {
            path,
            source: error,
        },
    }
}

impl Catalog for SqliteCatalog {
    fn load(&mut self) -> Result<Snapshot, CatalogError> {
        let tx = self.connection.transaction().map_err(storage)?;
        let (version, label): (i64, String) = tx
            .query_row("SELECT version, label FROM catalog", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(storage)?;
        let snapshot = Snapshot {
            version: version.cast_unsigned(),
            label,
            entities: entities(&tx)?,
            clusters: clusters(&tx)?,
        };
        tx.commit().map_err(storage)?;
        Ok(snapshot)
    }

    fn commit(&mut self, change: &Change) -> Result<(), CatalogError> {
        commit(&mut self.connection, change, |_| ())
    }

    fn load_tables(&mut self) -> Result<BTreeMap<ClusterName, Table>, CatalogError> {
        kept::load(&mut self.connection)
    }

    fn commit_table(
        &mut self,
        cluster: ClusterName,
        change: &TableChange,
        label: &str,
    ) -> Result<(), CatalogError> {
        kept::commit(&mut self.connection, cluster, change, label, |_| ())
    }
}

fn entities(tx: &Transaction<'_>) -> Result<BTreeMap<Guid, Entity>, CatalogError> {
    let mut out = BTreeMap::new();
    let mut statement = tx
        .prepare(
            "SELECT guid, type, address, name, cluster, requested, ownership, owners, epoch,
                incarnation, change, version, label, assignment FROM entity",
        )
        .map_err(storage)?;
    let mut rows = statement.query([]).map_err(storage)?;
    while let Some(row) = rows.next().map_err(storage)? {
        let entity = entity(row)?;
        out.insert(entity.guid, entity);
    }
    guests(tx, &mut out)?;
    Ok(out)
}

/// Adds what is known of units where they are guests.
fn guests(tx: &Transaction<'_>, entities: &mut BTreeMap<Guid, Entity>) -> Result<(), CatalogError> {
    let mut statement = tx
        .prepare("SELECT unit, cluster, ownership, owners, epoch FROM guest")
        .map_err(storage)?;
    let mut rows = statement.query([]).map_err(storage)?;
    while let Some(row) = rows.next().map_err(storage)? {
        let text = |index: usize| row.get::<_, String>(index).map_err(storage);
        let id = text(0)?;
        let cluster: ClusterName = value("cluster", &id, &text(1)?)?;
        let epoch: i64 = row.get(4).map_err(storage)?;
        let guest = GuestRow {
            ownership: ownership(&id, &text(2)?, &text(3)?)?,
            epoch: Epoch(epoch.cast_unsigned()),
        };
        if let Some(unit) = entities.get_mut(&value("unit", &id, &id)?) {
            unit.guests.insert(cluster, guest);
        }
    }
    Ok(())
}

fn clusters(tx: &Transaction<'_>) -> Result<BTreeMap<ClusterName, u64>, CatalogError> {
    let mut out = BTreeMap::new();
    let mut statement = tx
        .prepare("SELECT name, version FROM cluster")
        .map_err(storage)?;
    let mut rows = statement.query([]).map_err(storage)?;
    while let Some(row) = rows.next().map_err(storage)? {
        let name: String = row.get(0).map_err(storage)?;
        let version: i64 = row.get(1).map_err(storage)?;
        let cluster = value("name", &format!("cluster {name}"), &name)?;
        out.insert(cluster, version.cast_unsigned());
    }
    Ok(out)
}

/// Makes `change` durable; `between` is called after every statement.
fn commit(
    connection: &mut Connection,
    change: &Change,
    mut between: impl FnMut(&str),
) -> Result<(), CatalogError> {
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(storage)?;
    let mut run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        let done = tx.prepare_cached(sql).and_then(|mut s| s.execute(values));
        between(sql);
        done.map_err(storage)
    };
    let expected = change.expected.cast_signed();
    let version = change.version.cast_signed();
    let updated = run(
        "UPDATE catalog SET version = ?1, label = ?2 WHERE version = ?3",
        params![version, change.label, expected],
    )?;
    if updated != 1 {
        let found: i64 = tx
            .query_row("SELECT version FROM catalog", [], |row| row.get(0))
            .map_err(storage)?;
        return Err(CatalogError::Conflict {
            expected: change.expected,
            found: found.cast_unsigned(),
        });
    }
    for guid in &change.removed {
        run(
            "DELETE FROM entity WHERE guid = ?1",
            params![guid.to_string()],
        )?;
        run(
            "DELETE FROM guest WHERE unit = ?1",
            params![guid.to_string()],
        )?;
    }
    for e in &change.put {
        run(
            "INSERT OR REPLACE INTO entity VALUES
                (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                e.guid.to_string(),
                type_word(e.entity),
                join(&e.macs),
                e.name,
                e.assigned.as_str(),
                e.requested.as_str(),
                e.ownership.word(),
                join(e.ownership.owners()),
                e.epoch.0.cast_signed(),
                e.observed.incarnation.0.cast_signed(),
                e.observed.change.cast_signed(),
                e.version.cast_signed(),
                e.label,
                e.assignment.cast_signed(),
            ],
        )?;
        if e.entity == EntityType::Unit {
            let unit = e.guid.to_string();
            run("DELETE FROM guest WHERE unit = ?1", params![unit])?;
            for (cluster, guest) in &e.guests {
                run(
                    "INSERT INTO guest VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        unit,
                        cluster.as_str(),
                        guest.ownership.word(),
                        join(guest.ownership.owners()),
                        guest.epoch.0.cast_signed(),
                    ],
                )?;
            }
        }
    }
    for cluster in &change.emptied {
        let cluster = cluster.as_str();
        run("DELETE FROM cluster WHERE name = ?1", params![cluster])?;
        run("DELETE FROM crt WHERE cluster = ?1", params![cluster])?;
        run("DELETE FROM crt_row WHERE cluster = ?1", params![cluster])?;
    }
    for cluster in &change.touched {
        run(
            "INSERT OR REPLACE INTO cluster VALUES (?1, ?2)",
            params![cluster.as_str(), version],
        )?;
    }
    tx.commit().map_err(storage)
}

pub(super) fn storage(error: impl std::error::Error + Send + Sync + 'static) -> CatalogError {
    CatalogError::Storage(Box::new(error))
}

const fn type_word(entity: EntityType) -> &'static str {
    match entity {
        EntityType::Host => "host",
        _ => "unit",
    }
}

pub(super) fn join<T: ToString>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(ToString::to_string).collect();
    texts.join(" ")
}

pub(super) fn value<T: FromStr>(
    column: &'static str,
    row: &str,
    text: &str,
) -> Result<T, CatalogError> {
    text.parse().map_err(|_| {
        storage(BadValue {
            column,
            row: row.to_owned(),
            value: text.escape_default().to_string(),
        })
    })
}

fn values<T: FromStr>(column: &'static str, row: &str, text: &str) -> Result<Vec<T>, CatalogError> {
    text.split_ascii_whitespace()
        .map(|word| value(column, row, word))
        .collect()
}

fn ownership(id: &str, word: &str, owners: &str) -> Result<Ownership, CatalogError> {
    let owners: Vec<Guid> = values("owners", id, owners)?;
    let ownership = match (word, &owners[..]) {
        ("unallocated", []) => Some(Ownership::Unallocated),
        ("dedicated", [one]) => Some(Ownership::Dedicated(*one)),
        ("shared", _) => Ownership::shared(owners.clone()),
        _ => None,
    };
    ownership.ok_or_else(|| {
        storage(BadValue {
            column: "ownership",
            row: id.to_owned(),
            value: word.escape_default().to_string(),
        })
    })
}

fn entity(row: &Row<'_>) -> Result<Entity, CatalogError> {
    let text = |index: usize| row.get::<_, String>(index).map_err(storage);
    let number = |index: usize| {
        let signed: i64 = row.get(index).map_err(storage)?;
        Ok::<_, CatalogError>(signed.cast_unsigned())
    };
    let id = text(0)?;
    let cluster = |column, index: usize| match text(index)?.as_str() {
        "" => Ok(ClusterName::NONE),
        name => value(column, &id, name),
    };
    Ok(Entity {
        guid: value("guid", &id, &id)?,
        entity: match text(1)?.as_str() {
            "host" => EntityType::Host,
            _ => EntityType::Unit,
        },
        macs: values::<Mac>("address", &id, &text(2)?)?,
        name: text(3)?,
        assigned: cluster("cluster", 4)?,
        requested: cluster("requested", 5)?,
        ownership: ownership(&id, &text(6)?, &text(7)?)?,
        assignment: number(13)?,
        guests: BTreeMap::new(),
        epoch: Epoch(number(8)?),
        observed: ObservationStamp {
            incarnation: Incarnation(number(9)?),
            change: number(10)?,
        },
        version: number(11)?,
        label: text(12)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(number: u128, version: u64) -> Entity {
        Entity {
            guid: Guid(number),
            entity: EntityType::Unit,
            macs: vec![Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])],
            name: "it's \"112\"; DROP TABLE entity;\n".into(),
            observed: ObservationStamp {
                incarnation: Incarnation(u64::MAX),
                change: 1 << 63,
            },
            requested: ClusterName::NONE,
            assigned: "A".parse().unwrap(),
            assignment: u64::MAX - 2,
            guests: BTreeMap::from([("B".parse().unwrap(), guest())]),
            ownership: Ownership::shared(vec![Guid(108), Guid(110)]).unwrap(),
            epoch: Epoch(u64::MAX - 1),
            version,
            label: "2024-01-02 03:04:05".into(),
        }
    }

    fn guest() -> GuestRow {
        GuestRow {
            ownership: Ownership::Dedicated(Guid(7)),
            epoch: Epoch(u64::MAX),
        }
    }

    fn change(expected: u64, put: Vec<Entity>) -> Change {
        Change {
            expected,
            version: expected + 1,
            label: "today".into(),
            touched: vec!["A".parse().unwrap()],
            put,
            ..Change::default()
        }
    }

    #[test]
    fn what_was_committed_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut model = Snapshot::default();
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        let changes = [
            change(0, vec![unit(1, 1), unit(u128::MAX, 1)]),
            Change {
                removed: vec![Guid(1)],
                ..change(1, vec![unit(2, 2)])
            },
            Change {
                removed: vec![Guid(2), Guid(u128::MAX)],
                touched: Vec::new(),
                emptied: vec!["A".parse().unwrap()],
                ..change(2, Vec::new())
            },
        ];
        for change in &changes {
            catalog.commit(change).unwrap();
            model.apply(change).unwrap();
            assert_eq!(catalog.load().unwrap(), model);
            drop(catalog);
            catalog = SqliteCatalog::open(&path).unwrap();
            assert_eq!(catalog.load().unwrap(), model);
        }
    }

    #[test]
    fn a_change_on_another_version_is_a_conflict_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = SqliteCatalog::open(&dir.path().join(FILE_NAME)).unwrap();
        catalog.commit(&change(0, vec![unit(1, 1)])).unwrap();
        let before = catalog.load().unwrap();
        assert!(matches!(
            catalog.commit(&change(0, vec![unit(2, 1)])),
            Err(CatalogError::Conflict {
                expected: 0,
                found: 1
            })
        ));
        assert_eq!(catalog.load().unwrap(), before);
    }

    /// Copies the database as a crash at this moment would leave it.
    fn image(path: &Path, to: &Path) {
        for suffix in ["", "-journal"] {
            let from = PathBuf::from(format!("{}{suffix}", path.display()));
            let to = PathBuf::from(format!("{}{suffix}", to.display()));
            let _ = std::fs::remove_file(&to);
            if from.exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
    }

    #[test]
    fn a_crash_between_any_two_statements_leaves_the_old_or_the_new_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let copy = dir.path().join("image.db");
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        // Dirty pages go to the file within the transaction, so that images need their journal.
        catalog
            .connection
            .execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1;")
            .unwrap();
        let mut model = Snapshot::default();
        let (mut torn, mut images) = (0, 0);
        for round in 0..2 {
            let put = (0..80).map(|n| unit(n * 7 + 1 + round * 50, round as u64 + 1));
            let next = change(model.version, put.collect());
            let mut rng = fastrand::Rng::with_seed(round as u64);
            commit(&mut catalog.connection, &next, |_| {
                if rng.u8(..) < 40 {
                    image(&path, &copy);
                    images += 1;
                    let journal = format!("{}-journal", copy.display());
                    torn += usize::from(std::fs::metadata(journal).is_ok_and(|m| m.len() > 512));
                    let mut survivor = SqliteCatalog::open(&copy).unwrap();
                    assert_eq!(survivor.load().unwrap(), model);
                }
            })
            .unwrap();
            model.apply(&next).unwrap();
            image(&path, &copy);
            assert_eq!(
                SqliteCatalog::open(&copy).unwrap().load().unwrap(),
                model,
                "what commit has answered is in the file"
            );
        }
        assert!(torn > 5 && images > 10, "{torn} of {images}");
    }

    /// A table of so many rows under this stamp, and all of it as a change.
    fn table(rows: u128, counter: u64) -> (Table, TableChange) {
        let stamp = crate::wire::TableStamp {
            term: 1,
            counter,
            writer: Guid(108),
        };
        let rows = (1..=rows).map(|n| {
            let mut row = crate::wire::Row::new(Guid(n * 77), EntityType::Unit);
            row.name = format!("it's \"{n}\" of {counter}");
            row.ownership = Ownership::shared(vec![Guid(108), Guid(110)]).unwrap();
            std::sync::Arc::new(row)
        });
        let table = Table::restore(crate::wire::Settings::default(), stamp, stamp, rows);
        let all: Vec<Guid> = table.rows().map(|row| row.guid).collect();
        let change = TableChange::of(&table, &all);
        (table, change)
    }

    #[test]
    fn a_crash_while_a_table_is_stored_leaves_the_old_or_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let copy = dir.path().join("image.db");
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        catalog
            .connection
            .execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1;")
            .unwrap();
        let cluster = "A".parse().unwrap();
        let (mut torn, mut images, mut before) = (0, 0, None);
        for round in 1..4 {
            let (next, change) = table(60 * u128::from(round), round);
            let mut rng = fastrand::Rng::with_seed(round);
            kept::commit(&mut catalog.connection, cluster, &change, "", |_| {
                if rng.u8(..) < 40 {
                    image(&path, &copy);
                    images += 1;
                    let journal = format!("{}-journal", copy.display());
                    torn += usize::from(std::fs::metadata(journal).is_ok_and(|m| m.len() > 512));
                    let mut survivor = SqliteCatalog::open(&copy).unwrap();
                    let found = survivor.load_tables().unwrap();
                    assert_eq!(found.get(&cluster).map(Table::summary), before);
                }
            })
            .unwrap();
            before = Some(next.summary());
            image(&path, &copy);
            let found = SqliteCatalog::open(&copy).unwrap().load_tables().unwrap();
            assert!(found[&cluster].rows().eq(next.rows()));
        }
        assert!(torn > 5 && images > 10, "{torn} of {images}");
    }

    #[test]
    fn a_table_goes_with_its_cluster_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        let (a, b): (ClusterName, ClusterName) = ("A".parse().unwrap(), "B".parse().unwrap());
        for cluster in [a, b] {
            catalog
                .commit_table(cluster, &table(9, 1).1, "today")
                .unwrap();
        }
        let emptied = Change {
            touched: Vec::new(),
            emptied: vec![a],
            ..change(0, Vec::new())
        };
        catalog.commit(&emptied).unwrap();
        drop(catalog);
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        assert!(catalog.load_tables().unwrap().keys().eq([&b]));
        let remove = "DELETE FROM crt_row WHERE name LIKE 'it%3%'";
        assert_eq!(catalog.connection.execute(remove, []).unwrap(), 1);
        drop(catalog);
        let error = SqliteCatalog::open(&path).unwrap_err().to_string();
        assert!(error.contains("table of cluster B"), "{error}");
        assert!(!error.contains('\n'));
    }

    /// The database as version 1 had it, with a host, a pending one and an owned unit.
    fn version_1(path: &Path) {
        let old = Connection::open(path).unwrap();
        old.execute_batch(SCHEMA).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        for (number, kind, cluster) in [(1, "host", "A"), (2, "host", ""), (3, "unit", "B")] {
            old.execute(
                "INSERT INTO entity VALUES (?1, ?2, '02:00:00:00:00:01', 'n', ?3, '',
                    'unallocated', '', 7, 1, 1, 1, 'then')",
                params![Guid(number).to_string(), kind, cluster],
            )
            .unwrap();
        }
        old.execute_batch(
            "INSERT INTO cluster VALUES ('A', 1), ('B', 1); UPDATE catalog SET version = 1;",
        )
        .unwrap();
    }

    #[test]
    fn an_older_database_is_brought_to_this_version_with_all_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        version_1(&path);
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        let found = catalog.load().unwrap();
        let assignments: Vec<_> = found.entities.values().map(|e| e.assignment).collect();
        assert_eq!(assignments, [1, 0, 1]);
        assert_eq!(found.entities[&Guid(3)].epoch, Epoch(7));
        assert!(found.entities.values().all(|e| e.guests.is_empty()));
        // It goes on as any other, and is not brought forward again.
        let mut unit = found.entities[&Guid(3)].clone();
        unit.assignment = 9;
        unit.guests.insert("A".parse().unwrap(), guest());
        catalog.commit(&change(1, vec![unit.clone()])).unwrap();
        drop(catalog);
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        assert_eq!(catalog.load().unwrap().entities[&Guid(3)], unit);
        assert_eq!(pragma(&catalog.connection, "user_version").unwrap(), 2);
        let a = "A".parse().unwrap();
        catalog.commit_table(a, &table(3, 1).1, "").unwrap();
        assert_eq!(catalog.load_tables().unwrap()[&a].len(), 3);
    }

    #[test]
    fn a_second_process_is_told_that_the_database_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let first = SqliteCatalog::open(&path).unwrap();
        assert!(matches!(
            SqliteCatalog::open(&path),
            Err(OpenError::InUse(_))
        ));
        drop(first);
        assert!(SqliteCatalog::open(&path).is_ok());
    }

    #[test]
    fn files_that_are_not_the_database_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        std::fs::write(&text, "hello, world".repeat(100)).unwrap();
        assert!(matches!(
            SqliteCatalog::open(&text),
            Err(OpenError::Foreign(_))
        ));
        assert_eq!(
            std::fs::read_to_string(&text).unwrap(),
            "hello, world".repeat(100)
        );

        let foreign = dir.path().join("foreign");
        let other = Connection::open(&foreign).unwrap();
        other.execute_batch("CREATE TABLE x (y)").unwrap();
        drop(other);
        assert!(matches!(
            SqliteCatalog::open(&foreign),
            Err(OpenError::Foreign(_))
        ));

        let newer = dir.path().join("newer");
        drop(SqliteCatalog::open(&newer).unwrap());
        let other = Connection::open(&newer).unwrap();
        other.pragma_update(None, "user_version", 7).unwrap();
        drop(other);
        let error = SqliteCatalog::open(&newer).unwrap_err();
        assert!(matches!(error, OpenError::OtherVersion { found: 7, .. }));
        assert!(!error.to_string().contains('\n'));

        assert!(matches!(
            SqliteCatalog::open(&dir.path().join("missing/fabric.db")),
            Err(OpenError::Storage { .. })
        ));
    }

    #[test]
    fn a_corrupted_database_is_refused_with_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut catalog = SqliteCatalog::open(&path).unwrap();
        let put = (1..200).map(|n| unit(n, 1)).collect();
        catalog.commit(&change(0, put)).unwrap();
        drop(catalog);
        let whole = std::fs::read(&path).unwrap();
        for at in [4096, 8192, 12288] {
            let mut bytes = whole.clone();
            bytes[at..at + 64].fill(0xa5);
            std::fs::write(&path, &bytes).unwrap();
            let error = SqliteCatalog::open(&path).unwrap_err();
            assert!(matches!(error, OpenError::Corrupted { .. }), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        std::fs::write(&path, &whole[..whole.len() - 4096]).unwrap();
        assert!(SqliteCatalog::open(&path).is_err());
        std::fs::write(&path, &whole).unwrap();
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("UPDATE entity SET address = 'nowhere' WHERE name != ''")
            .unwrap();
        drop(connection);
        let error = SqliteCatalog::open(&path).unwrap_err().to_string();
        assert!(error.contains("address"), "{error}");
    }
}
