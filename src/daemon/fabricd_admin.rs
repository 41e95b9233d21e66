//! Answers to what administrators ask of `rma-fabricd`.

use crate::admin::fabric_protocol::{
    CatalogInfo, ClusterInfo, Counter, EntityInfo, FabricReply, FabricRequest, FabricStatus,
    OwnerInfo,
};
use crate::fabric::{Catalog, Entity, EntityView, Fabric};
use crate::wire::{ClusterName, EntityType, Guid, Time};

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
        FabricRequest::Assign { entity, cluster } => assign(fabric, now, entity, cluster),
        FabricRequest::Remove { entity } => remove(fabric, now, entity),
    };
    done.unwrap_or_else(|message| FabricReply::Error { message })
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
    let names = &fabric.snapshot().entities;
    EntityInfo {
        guid: e.guid.to_string(),
        entity: if is_unit { "unit" } else { "host" }.to_owned(),
        macs: e.macs.iter().map(ToString::to_string).collect(),
        name: e.name.clone(),
        cluster: some(e.assigned),
        requested: some(e.requested),
        ownership: is_unit.then(|| e.ownership.word().to_owned()),
        owners: e
            .ownership
            .owners()
            .iter()
            .map(|guid| OwnerInfo {
                guid: guid.to_string(),
                name: names.get(guid).map(|host| host.name.clone()),
            })
            .collect(),
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
