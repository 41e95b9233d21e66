//! Answers to what administrators ask of `rma-fabricd`.

use crate::admin::fabric_protocol::{
    CatalogInfo, ClusterInfo, Counter, EntityInfo, FabricReply, FabricRequest, FabricStatus,
    GuestInfo, KeptTableInfo, OwnerInfo,
};
use crate::crt::Table;
use crate::fabric::{Catalog, Entity, EntityView, Fabric};
use crate::rma::report;
use crate::wire::{ClusterName, EntityType, Guid, Ownership, Time};

/// What only the daemon knows of itself.
#[derive(Debug, Clone)]
pub struct DaemonFacts {
    /// When it started.
    pub started: Time,
    /// The network interface.
    pub interface: String,
    /// Its address.
    pub mac: String,
    /// `up`, `down` or `gone`.
    pub link: &'static str,
    /// The database file.
    pub database: String,
    /// Counts of the packet socket.
    pub counters: Vec<Counter>,
}

/// Does what an administrator asks.
pub fn answer<C: Catalog>(
    fabric: &mut Fabric<C>,
    now: Time,
    facts: &DaemonFacts,
    request: &FabricRequest,
) -> FabricReply {
    let done = match request {
        FabricRequest::List => Ok(FabricReply::Catalog(catalog(fabric, now))),
        FabricRequest::Status => Ok(FabricReply::Status(Box::new(status(fabric, now, facts)))),
        FabricRequest::Tables => Ok(FabricReply::Tables {
            tables: fabric.tables().map(kept).collect(),
        }),
        FabricRequest::Table { cluster } => table(fabric, cluster),
        FabricRequest::Assign { entity, cluster } => assign(fabric, now, entity, cluster),
        FabricRequest::Remove { entity } => remove(fabric, now, entity),
    };
    done.unwrap_or_else(|message| FabricReply::Error { message })
}

fn kept((cluster, table): (ClusterName, &Table)) -> KeptTableInfo {
    KeptTableInfo {
        cluster: cluster.to_string(),
        table: report::summary_info(&table.summary()),
    }
}

fn table<C: Catalog>(fabric: &Fabric<C>, text: &str) -> Result<FabricReply, String> {
    let cluster: ClusterName = text.parse().map_err(|e| format!("{e}"))?;
    let found = fabric.tables().find(|(name, _)| *name == cluster);
    let (_, table) = found.ok_or_else(|| {
        format!(
            "no table of cluster {cluster} is kept; hosts with crt_source = \"central\" bring \
             theirs, and `rma fabric tables` lists what there is"
        )
    })?;
    let info = report::table_info(table, cluster);
    Ok(FabricReply::Table(Box::new(info)))
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn assign<C: Catalog>(
    fabric: &mut Fabric<C>,
    now: Time,
    entity: &str,
    cluster: &str,
) -> Result<FabricReply, String> {
    let cluster: ClusterName = cluster.parse().map_err(|e| format!("{e}"))?;
    let guid = fabric.resolve(entity).map_err(|e| e.to_string())?;
    let from = fabric.assign(now, guid, cluster).map_err(|e| chain(&e))?;
    let entity = one(fabric, now, guid).ok_or("the entity has gone")?;
    Ok(FabricReply::Assigned {
        entity,
        changed: from != cluster,
        from: some(from),
    })
}

fn remove<C: Catalog>(
    fabric: &mut Fabric<C>,
    now: Time,
    entity: &str,
) -> Result<FabricReply, String> {
    let guid = fabric.resolve(entity).map_err(|e| e.to_string())?;
    let before = one(fabric, now, guid).ok_or("the entity has gone")?;
    fabric.remove(now, guid).map_err(|e| chain(&e))?;
    Ok(FabricReply::Removed { entity: before })
}

fn one<C: Catalog>(fabric: &Fabric<C>, now: Time, guid: Guid) -> Option<EntityInfo> {
    let view = fabric.entities(now).find(|v| v.entity.guid == guid)?;
    Some(info(fabric, now, &view))
}

fn some(cluster: ClusterName) -> Option<String> {
    (!cluster.is_none()).then(|| cluster.to_string())
}

fn catalog<C: Catalog>(fabric: &Fabric<C>, now: Time) -> CatalogInfo {
    let state = fabric.snapshot();
    let mut views: Vec<_> = fabric.entities(now).collect();
    views.sort_by_key(|v| {
        let e = v.entity;
        (e.is_pending(), e.assigned, e.entity, e.guid)
    });
    let count = |cluster: ClusterName, entity: EntityType| {
        let of = |e: &&Entity| e.assigned == cluster && e.entity == entity;
        state.entities.values().filter(of).count()
    };
    CatalogInfo {
        version: state.version,
        label: state.label.clone(),
        clusters: state
            .clusters
            .iter()
            .map(|(name, version)| ClusterInfo {
                name: name.to_string(),
                version: *version,
                hosts: count(*name, EntityType::Host),
                units: count(*name, EntityType::Unit),
            })
            .collect(),
        entities: views.iter().map(|view| info(fabric, now, view)).collect(),
    }
}

fn info<C: Catalog>(fabric: &Fabric<C>, now: Time, view: &EntityView<'_>) -> EntityInfo {
    let e = view.entity;
    let is_unit = e.entity == EntityType::Unit;
    EntityInfo {
        guid: e.guid.to_string(),
        entity: if is_unit { "unit" } else { "host" }.to_owned(),
        macs: e.macs.iter().map(ToString::to_string).collect(),
        name: e.name.clone(),
        cluster: some(e.assigned),
        assignment: e.assignment,
        guests: e
            .guests
            .iter()
            .map(|(cluster, guest)| GuestInfo {
                cluster: cluster.to_string(),
                ownership: guest.ownership.word().to_owned(),
                owners: owners(fabric, &guest.ownership),
                epoch: guest.epoch.0,
            })
            .collect(),
        requested: some(e.requested),
        ownership: is_unit.then(|| e.ownership.word().to_owned()),
        owners: owners(fabric, &e.ownership),
        epoch: e.epoch.0,
        incarnation: e.observed.incarnation.0,
        version: e.version,
        label: e.label.clone(),
        connected: view.connected,
        last_seen_ms: view
            .heard
            .map(|(_, at)| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX)),
        last_seen_at: view.heard.map(|(mac, _)| mac.to_string()),
    }
}

fn owners<C: Catalog>(fabric: &Fabric<C>, ownership: &Ownership) -> Vec<OwnerInfo> {
    let names = &fabric.snapshot().entities;
    ownership
        .owners()
        .iter()
        .map(|guid| OwnerInfo {
            guid: guid.to_string(),
            name: names.get(guid).map(|host| host.name.clone()),
        })
        .collect()
}

fn status<C: Catalog>(fabric: &Fabric<C>, now: Time, facts: &DaemonFacts) -> FabricStatus {
    let state = fabric.snapshot();
    let config = fabric.config();
    let all = || state.entities.values();
    let c = fabric.counters();
    let mut counters: Vec<_> = [
        ("searches answered", c.searches),
        ("registrations", c.registrations),
        ("twins refused", c.twins),
        ("membership pages", c.pages),
        ("unchanged lists", c.unchanged),
        ("unit ownerships", c.ownerships),
        ("tables told", c.tables_told),
        ("tables taken", c.tables_taken),
        ("tables refused", c.tables_refused),
        ("requests refused", c.refused),
        ("notifications", c.notifications),
        ("transactions", c.commits),
        ("failed transactions", c.failed_commits),
        ("log lines lost", c.lost_events),
    ]
    .map(|(name, count)| Counter {
        name: name.to_owned(),
        count,
    })
    .into();
    counters.extend(facts.counters.iter().cloned());
    FabricStatus {
        guid: config.guid.to_string(),
        incarnation: config.incarnation.0,
        uptime_ms: u64::try_from(now.since(facts.started).as_millis()).unwrap_or(u64::MAX),
        interface: facts.interface.clone(),
        mac: facts.mac.clone(),
        link: facts.link.to_owned(),
        mtu: config.mtu,
        policy: config.policy.word().to_owned(),
        database: facts.database.clone(),
        version: state.version,
        label: state.label.clone(),
        hosts: all().filter(|e| e.entity == EntityType::Host).count(),
        units: all().filter(|e| e.entity == EntityType::Unit).count(),
        pending: all().filter(|e| e.is_pending()).count(),
        connected: fabric.entities(now).filter(|v| v.connected).count(),
        clusters: state.clusters.len(),
        counters,
        drops: fabric
            .drops()
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| Counter {
                name: reason.to_string(),
                count,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::{Change, FabricConfig, MemoryCatalog, Policy};
    use crate::wire::{Epoch, Incarnation, Mac, ObservationStamp};

    fn row(guid: u128, entity: EntityType, cluster: &str, ownership: Ownership) -> Entity {
        Entity {
            guid: Guid(guid),
            entity,
            macs: vec![Mac([2, 0, 0, 0, 0, guid as u8])],
            name: guid.to_string(),
            observed: ObservationStamp::default(),
            requested: ClusterName::NONE,
            assigned: cluster.parse().unwrap_or(ClusterName::NONE),
            assignment: 1,
            guests: std::collections::BTreeMap::new(),
            ownership,
            epoch: Epoch(1),
            version: 1,
            label: "2024-01-02 03:04:05Z".into(),
        }
    }

    /// Fig. 3, and one that is pending.
    fn fabric() -> Fabric<MemoryCatalog> {
        use EntityType::{Host, Unit};
        let nobody = Ownership::Unallocated;
        let both = Ownership::shared(vec![Guid(108), Guid(110)]).unwrap();
        let mut catalog = MemoryCatalog::new();
        let names = ["A", "B"].map(|name| name.parse().unwrap());
        catalog
            .commit(&Change {
                expected: 0,
                version: 1,
                label: "2024-01-02 03:04:05Z".into(),
                put: vec![
                    row(100, Host, "", nobody.clone()),
                    row(108, Host, "A", nobody.clone()),
                    row(110, Host, "A", nobody.clone()),
                    row(112, Unit, "A", both),
                    row(118, Unit, "A", Ownership::Dedicated(Guid(110))),
                    row(130, Host, "B", nobody),
                    row(132, Unit, "B", Ownership::Dedicated(Guid(999))),
                ],
                touched: names.into(),
                ..Change::default()
            })
            .unwrap();
        let config = FabricConfig {
            guid: Guid(9),
            incarnation: Incarnation(3),
            policy: Policy::Pending,
            mtu: 1500,
        };
        Fabric::new(config, catalog, 1).unwrap()
    }

    fn facts() -> DaemonFacts {
        DaemonFacts {
            started: Time::from_nanos(1_000_000),
            interface: "eth0".into(),
            mac: "02:00:00:00:00:09".into(),
            link: "up",
            database: "/s/fabric.db".into(),
            counters: Vec::new(),
        }
    }

    fn ask(fabric: &mut Fabric<MemoryCatalog>, request: &FabricRequest) -> FabricReply {
        answer(fabric, Time::from_nanos(5_000_000), &facts(), request)
    }

    fn refused(fabric: &mut Fabric<MemoryCatalog>, request: &FabricRequest) -> String {
        match ask(fabric, request) {
            FabricReply::Error { message } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_list_is_figure_3() {
        let FabricReply::Catalog(catalog) = ask(&mut fabric(), &FabricRequest::List) else {
            panic!("no catalog");
        };
        let line = |e: &EntityInfo| {
            let owners: Vec<_> = e
                .owners
                .iter()
                .map(|o| o.name.as_deref().unwrap_or("?"))
                .collect();
            format!(
                "{} {} {} {} {}",
                e.name,
                e.entity,
                e.cluster.as_deref().unwrap_or("-"),
                e.ownership.as_deref().unwrap_or("-"),
                owners.join(",")
            )
        };
        let lines: Vec<_> = catalog.entities.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "108 host A - ",
                "110 host A - ",
                "112 unit A shared 108,110",
                "118 unit A dedicated 110",
                "130 host B - ",
                "132 unit B dedicated ?",
                "100 host - - ",
            ]
        );
        assert_eq!((catalog.version, catalog.clusters.len()), (1, 2));
        assert_eq!(
            (catalog.clusters[0].hosts, catalog.clusters[0].units),
            (2, 2)
        );
        assert_eq!(catalog.label, "2024-01-02 03:04:05Z");
    }

    #[test]
    fn an_assignment_says_what_it_changed() {
        let mut fabric = fabric();
        let assign = |entity: &str, cluster: &str| FabricRequest::Assign {
            entity: entity.into(),
            cluster: cluster.into(),
        };
        let reply = ask(&mut fabric, &assign("100", "A"));
        let FabricReply::Assigned {
            entity,
            from,
            changed,
        } = reply
        else {
            panic!("{reply:?}");
        };
        assert_eq!(
            (entity.cluster.as_deref(), from, changed),
            (Some("A"), None, true)
        );
        let again = ask(&mut fabric, &assign("02:00:00:00:00:64", "A"));
        assert!(matches!(
            again,
            FabricReply::Assigned { changed: false, .. }
        ));
        let moved = ask(&mut fabric, &assign("112", "B"));
        let FabricReply::Assigned { entity, .. } = moved else {
            panic!("{moved:?}");
        };
        assert_eq!(entity.ownership.as_deref(), Some("unallocated"));

        let version = fabric.snapshot().version;
        assert!(refused(&mut fabric, &assign("nobody", "A")).contains("'nobody'"));
        assert!(refused(&mut fabric, &assign("112", "no such name")).contains("'no such name'"));
        fabric.catalog_mut().set_failing(true);
        let failed = refused(&mut fabric, &assign("112", "A"));
        assert_eq!(
            failed,
            "nothing was changed: the catalog cannot be stored: told to fail"
        );
        assert_eq!(fabric.snapshot().version, version);
    }

    #[test]
    fn a_removal_shows_the_row_as_it_was() {
        let mut fabric = fabric();
        let remove = FabricRequest::Remove {
            entity: "118".into(),
        };
        let reply = ask(&mut fabric, &remove);
        assert!(matches!(&reply, FabricReply::Removed { entity } if entity.name == "118"));
        assert!(refused(&mut fabric, &remove).contains("118"));
    }

    #[test]
    fn the_status_counts_and_survives_json() {
        let reply = ask(&mut fabric(), &FabricRequest::Status);
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<FabricReply>(&text).unwrap(), reply);
        let FabricReply::Status(status) = reply else {
            panic!("no status");
        };
        assert_eq!((status.hosts, status.units, status.pending), (4, 3, 1));
        assert_eq!((status.clusters, status.uptime_ms), (2, 4));
        assert_eq!((status.policy.as_str(), status.incarnation), ("pending", 3));
        let asked = r#"{"verb":"assign","entity":"h","cluster":"A"}"#;
        assert!(serde_json::from_str::<FabricRequest>(asked).is_ok());
        let odd = r#"{"verb":"remove","entity":"h","all":true}"#;
        assert!(serde_json::from_str::<FabricRequest>(odd).is_err());
    }
}
