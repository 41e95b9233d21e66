//! Figures 3 and 4 as the demonstration checks them.

use super::{Demo, Result};

impl Demo {
    /// (name, type, number, parent, ownership) of each row of a host's stored table.
    pub(super) fn table(&self, host: &str) -> Result<Vec<[String; 5]>> {
        let crt = self.host(host).crt();
        let value = self
            .host(host)
            .json(&["crt", "show", "--file", crt.to_str().ok_or("path")?])
            .ok_or("the table cannot be read")?;
        let rows = value["rows"].as_array().ok_or("the table has no rows")?;
        Ok(rows
            .iter()
            .map(|row| {
                let text = |v: &serde_json::Value| v.as_str().unwrap_or("-").to_owned();
                let number = match (row["ioc"].as_u64(), row["iod"].as_u64()) {
                    (Some(1..), Some(iod @ 1..)) => format!("IOD {iod}"),
                    (Some(ioc @ 1..), _) => format!("IOC {ioc}"),
                    _ => "-".into(),
                };
                let mut owners: Vec<_> = row["owners"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|o| text(&o["name"]))
                    .collect();
                owners.sort();
                [
                    text(&row["name"]),
                    text(&row["type"]),
                    number,
                    text(&row["parent"]["name"]),
                    format!("{} {}", text(&row["ownership"]), owners.join(", "))
                        .trim()
                        .to_owned(),
                ]
            })
            .collect())
    }

    pub(super) fn check_fig4(&self, host: &str) -> Result<()> {
        let expected = [
            ["108", "host", "-", "-", "unallocated"],
            ["110", "host", "-", "-", "unallocated"],
            ["112", "I/O unit", "-", "-", "shared 108, 110"],
            ["114A", "I/O controller", "IOC 1", "112", "shared 108, 110"],
            ["116A1", "I/O device", "IOD 1", "114A", "dedicated 108"],
            ["116A2", "I/O device", "IOD 2", "114A", "dedicated 110"],
            ["114B", "I/O controller", "IOC 2", "112", "shared 108, 110"],
            ["116B1", "I/O device", "IOD 1", "114B", "shared 108, 110"],
            ["118", "I/O unit", "-", "-", "dedicated 110"],
            ["120", "I/O controller", "IOC 1", "118", "dedicated 110"],
            ["122A", "I/O device", "IOD 1", "120", "dedicated 110"],
        ];
        let table = self.table(host)?;
        if table != expected {
            return Err(format!("host {host}'s table is not Fig. 4's: {table:#?}").into());
        }
        Ok(())
    }
}
