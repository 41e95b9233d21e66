//! Clusters' tables (Fig. 4) in the fabric services database. What counts of a row is its encoding;
//! the other columns are for people who look with `sqlite3`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::catalog::{join, storage, value};
use crate::crt::{Table, TableChange, stored_table};
use crate::fabric::catalog::CatalogError;
use crate::wire::{ClusterName, DecodeError, Guid, Row, Wire};

pub(super) const SCHEMA: &str = "
    CREATE TABLE crt (
        cluster TEXT PRIMARY KEY,
        stamp TEXT NOT NULL,
        digest TEXT NOT NULL,
        rows INTEGER NOT NULL,
        label TEXT NOT NULL,
        meta BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE crt_row (
        cluster TEXT NOT NULL,
        guid TEXT NOT NULL,
        type TEXT NOT NULL,
        state TEXT NOT NULL,
        name TEXT NOT NULL,
        address TEXT NOT NULL,
        parent TEXT NOT NULL,
        ownership TEXT NOT NULL,
        owners TEXT NOT NULL,
        row BLOB NOT NULL,
        PRIMARY KEY (cluster, guid)
    ) STRICT, WITHOUT ROWID;
";

/// A table in the file is not what was stored.
#[derive(Debug, thiserror::Error)]
enum BadTable {
    /// Bytes that cannot be read.
    #[error("the table of cluster {cluster}, {what}: {source}")]
    Unreadable {
        cluster: ClusterName,
        what: String,
        source: DecodeError,
    },
    /// Rows are missing, or other ones are there.
    #[error("the table of cluster {0} is not the one that was stored: another digest")]
    Digest(ClusterName),
    /// Rows without a table.
    #[error("rows of cluster {0}, of which no table is kept")]
    Stray(String),
}

/// Every table that is kept.
pub(super) fn load(
    connection: &mut Connection,
) -> Result<BTreeMap<ClusterName, Table>, CatalogError> {
    let tx = connection.transaction().map_err(storage)?;
    let mut rows = rows(&tx)?;
    let mut tables = BTreeMap::new();
    let mut statement = tx
        .prepare("SELECT cluster, digest, meta FROM crt")
        .map_err(storage)?;
    let mut found = statement.query([]).map_err(storage)?;
    while let Some(line) = found.next().map_err(storage)? {
        let name: String = line.get(0).map_err(storage)?;
        let digest: String = line.get(1).map_err(storage)?;
        let meta: Vec<u8> = line.get(2).map_err(storage)?;
        let cluster: ClusterName = value("cluster", &format!("table {name}"), &name)?;
        let rows = rows.remove(&name).unwrap_or_default();
        let table = stored_table(&meta, rows).map_err(|source| {
            storage(BadTable::Unreadable {
                cluster,
                what: "its stamps".to_owned(),
                source,
            })
        })?;
        if digest_text(table.digest()) != digest {
            return Err(storage(BadTable::Digest(cluster)));
        }
        tables.insert(cluster, table);
    }
    match rows.into_keys().next() {
        Some(stray) => Err(storage(BadTable::Stray(stray.escape_default().to_string()))),
        None => Ok(tables),
    }
}

fn rows(tx: &Transaction<'_>) -> Result<BTreeMap<String, Vec<Arc<Row>>>, CatalogError> {
    let mut all: BTreeMap<String, Vec<Arc<Row>>> = BTreeMap::new();
    let mut statement = tx
        .prepare("SELECT cluster, guid, row FROM crt_row")
        .map_err(storage)?;
    let mut found = statement.query([]).map_err(storage)?;
    while let Some(line) = found.next().map_err(storage)? {
        let name: String = line.get(0).map_err(storage)?;
        let guid: String = line.get(1).map_err(storage)?;
        let bytes: Vec<u8> = line.get(2).map_err(storage)?;
        let guid: Guid = value("guid", "crt_row", &guid)?;
        let row = Row::from_body(&bytes).and_then(|row| {
            if row.guid == guid {
                Ok(row)
            } else {
                Err(DecodeError::BadValue("GUID"))
            }
        });
        let row = match row {
            Ok(row) => row,
            Err(source) => {
                return Err(storage(BadTable::Unreadable {
                    cluster: value("cluster", "crt_row", &name)?,
                    what: format!("row {guid}"),
                    source,
                }));
            }
        };
        all.entry(name).or_default().push(Arc::new(row));
    }
    Ok(all)
}

/// Makes a change of a cluster's table durable; `between` is called after every statement.
pub(super) fn commit(
    connection: &mut Connection,
    cluster: ClusterName,
    change: &TableChange,
    label: &str,
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
    let summary = change.summary();
    let stamp = summary.stamp;
    run(
        "INSERT OR REPLACE INTO crt VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            cluster.as_str(),
            format!("{}.{} by {}", stamp.term, stamp.counter, stamp.writer),
            digest_text(summary.digest),
            summary.row_count,
            label,
            change.meta(),
        ],
    )?;
    for (guid, bytes) in change.records() {
        let Some(bytes) = bytes else {
            run(
                "DELETE FROM crt_row WHERE cluster = ?1 AND guid = ?2",
                params![cluster.as_str(), guid.to_string()],
            )?;
            continue;
        };
        let row = Row::from_body(bytes).map_err(storage)?;
        let parent = if row.parent.is_nil() {
            String::new()
        } else {
            row.parent.to_string()
        };
        run(
            "INSERT OR REPLACE INTO crt_row VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                cluster.as_str(),
                guid.to_string(),
                row.entity.name(),
                row.state.name(),
                row.name,
                row.address().map_or(String::new(), |a| a.to_string()),
                parent,
                row.ownership.word(),
                join(row.ownership.owners()),
                bytes,
            ],
        )?;
    }
    tx.commit().map_err(storage)
}

fn digest_text(digest: u128) -> String {
    format!("{digest:032x}")
}
