//! Rows from peers: two tables made of any rows join to the same one, whichever way round and
//! however often.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rma::crt::Table;
use rma::wire::message::{Parts, TableRowsReply};
use rma::wire::{Guid, Row, Settings, Wire};

fn table(settings: &Settings, rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.join(settings, rows.iter().cloned());
    table
}

fuzz_target!(|input: (&[u8], &[u8])| {
    let (Ok(left), Ok(right)) = (
        TableRowsReply::from_body(input.0),
        TableRowsReply::from_body(input.1),
    ) else {
        return;
    };
    let mut a = table(&left.settings, &left.rows);
    let mut b = table(&right.settings, &right.rows);
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (a.rows().cloned().collect(), b.rows().cloned().collect());
    let (ours_settings, theirs_settings) = (*a.settings(), *b.settings());
    a.join(&theirs_settings, theirs.clone());
    b.join(&ours_settings, ours);
    assert_eq!(a.digest(), b.digest(), "joined either way");
    let again = a.join(&theirs_settings, theirs);
    assert!(again.changed.is_empty() && !again.theirs_newer);

    // Walks through any shape of parents end.
    for row in a.rows() {
        let _ = (
            a.path(row.guid),
            a.unit_of(row.guid),
            a.is_present(row.guid),
        );
        let _ = (a.ancestry(row.guid).count(), a.children(row.guid).count());
    }
    let (page, _) = a.rows_after(Guid::NIL, &Parts::whole(), usize::MAX);
    assert_eq!(page.len(), a.len());
});
