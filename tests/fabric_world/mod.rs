//! Fabric services and links on a simulated segment: virtual time, one seed, faulty wires.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use rma::fabric::{
    Catalog, Fabric, FabricConfig, FabricEvent, FabricLink, Facts, LinkConfig, LinkEvent,
    MembershipList, MemoryCatalog, Policy,
};
use rma::wire::kind::Role;
use rma::wire::{
    ClusterName, EntityType, FABRIC_MULTICAST, Guid, HEADER_LEN, Header, Incarnation, Kind, Mac,
    Time,
};

pub(crate) const POLL: Duration = Duration::from_secs(5);

/// What the wire does to frames; probabilities.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) corrupt: f64,
}

pub(crate) const BAD_WIRE: Faults = Faults {
    loss: 0.1,
    duplicate: 0.05,
    reorder: 0.2,
    corrupt: 0.05,
};

pub(crate) struct FabricNode<C = MemoryCatalog> {
    pub(crate) mac: Mac,
    pub(crate) config: FabricConfig,
    pub(crate) fabric: Option<Fabric<C>>,
    /// The durable part while it is down.
    pub(crate) disk: Option<C>,
    pub(crate) log: Vec<FabricEvent>,
}

pub(crate) struct LinkNode {
    pub(crate) mac: Mac,
    pub(crate) link: FabricLink,
    pub(crate) alive: bool,
    pub(crate) events: Vec<(Time, LinkEvent)>,
}

impl LinkNode {
    pub(crate) fn cluster(&self) -> ClusterName {
        self.link.cluster()
    }

    pub(crate) fn list(&self) -> &MembershipList {
        self.link.members().expect("a list has come")
    }

    pub(crate) fn guids(&self) -> Vec<u128> {
        self.list().members.iter().map(|m| m.guid.0).collect()
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.events.iter().map(|(_, e)| name(e)).collect()
    }
}

pub(crate) fn name(event: &LinkEvent) -> &'static str {
    match event {
        LinkEvent::Up { .. } => "up",
        LinkEvent::Down => "down",
        LinkEvent::Assigned(_) => "assigned",
        LinkEvent::Pending => "pending",
        LinkEvent::Refused(_) => "refused",
        LinkEvent::Members(_) => "members",
        LinkEvent::TablesOpen => "tables open",
        LinkEvent::TablesClosed => "tables closed",
        LinkEvent::Table { .. } => "table",
        LinkEvent::HostFound(..) => "found",
    }
}

pub(crate) struct World<C = MemoryCatalog> {
    pub(crate) now: Time,
    pub(crate) rng: fastrand::Rng,
    pub(crate) faults: Faults,
    /// Frames addressed to these stations are lost; what is sent to a group arrives.
    pub(crate) deaf: Vec<Mac>,
    queue: BTreeMap<(Time, u64), (Mac, Mac, Vec<u8>)>,
    sent: u64,
    /// Frames by kind, as sent.
    pub(crate) frames: BTreeMap<Kind, u64>,
    pub(crate) largest: usize,
    pub(crate) fabrics: Vec<FabricNode<C>>,
    pub(crate) links: Vec<LinkNode>,
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

pub(crate) fn mac(number: u64) -> Mac {
    let b = number.to_be_bytes();
    Mac([2, 0, b[4], b[5], b[6], b[7]])
}

impl<C: Catalog> World<C> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Time::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            deaf: Vec::new(),
            queue: BTreeMap::new(),
            sent: 0,
            frames: BTreeMap::new(),
            largest: 0,
            fabrics: Vec::new(),
            links: Vec::new(),
        }
    }

    pub(crate) fn add_fabric_on(
        &mut self,
        guid: u128,
        policy: Policy,
        mtu: u16,
        catalog: C,
    ) -> usize {
        let config = FabricConfig {
            guid: Guid(guid),
            incarnation: Incarnation(0),
            policy,
            mtu,
        };
        self.fabrics.push(FabricNode {
            mac: mac(0x1000 + guid as u64),
            config,
            fabric: None,
            disk: Some(catalog),
            log: Vec::new(),
        });
        let index = self.fabrics.len() - 1;
        self.start_fabric(index);
        index
    }

    /// Starts one that is down, from what is durable, as its next incarnation.
    pub(crate) fn start_fabric(&mut self, index: usize) {
        let node = &mut self.fabrics[index];
        node.config.incarnation.0 += 1;
        let disk = node.disk.take().expect("it is down");
        let seed = self.rng.u64(..);
        node.fabric = Some(Fabric::new(node.config.clone(), disk, seed).unwrap());
    }

    pub(crate) fn fabric(&mut self, index: usize) -> &mut Fabric<C> {
        self.fabrics[index].fabric.as_mut().expect("it is up")
    }

    pub(crate) fn link_config(entity: EntityType, guid: u128, wanted: Option<&str>) -> LinkConfig {
        LinkConfig {
            local: Guid(guid),
            incarnation: Incarnation(1),
            role: match entity {
                EntityType::Host => Role::Host,
                _ => Role::Unit,
            },
            entity,
            facts: Facts {
                macs: vec![mac(guid as u64)],
                name: format!("{entity} {guid}"),
                cluster: wanted.map_or(ClusterName::NONE, cluster),
                change: 0,
                ..Facts::default()
            },
            fabric_mac: None,
            tables: false,
            poll: POLL,
            mtu: 1500,
        }
    }

    pub(crate) fn add_link(&mut self, config: LinkConfig) -> usize {
        let seed = self.rng.u64(..);
        self.links.push(LinkNode {
            mac: config.facts.macs[0],
            link: FabricLink::new(config, seed),
            alive: true,
            events: Vec::new(),
        });
        self.links.len() - 1
    }

    pub(crate) fn add_host(&mut self, guid: u128, wanted: Option<&str>) -> usize {
        self.add_link(Self::link_config(EntityType::Host, guid, wanted))
    }

    pub(crate) fn add_unit(&mut self, guid: u128, wanted: Option<&str>) -> usize {
        self.add_link(Self::link_config(EntityType::Unit, guid, wanted))
    }

    fn send(&mut self, to: Mac, from: Mac, frame: &[u8]) {
        let (header, _) = Header::parse(frame, false).expect("we send good frames");
        *self.frames.entry(header.kind).or_default() += 1;
        self.largest = self.largest.max(frame.len());
        if self.deaf.contains(&to) || self.rng.f64() < self.faults.loss {
            return;
        }
        let copies = 1 + usize::from(self.rng.f64() < self.faults.duplicate);
        for _ in 0..copies {
            let mut frame = frame.to_vec();
            if self.rng.f64() < self.faults.corrupt {
                let bit = self.rng.usize(..frame.len() * 8);
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            let mut delay = Duration::from_micros(self.rng.u64(20..60));
            if self.rng.f64() < self.faults.reorder {
                delay += Duration::from_micros(self.rng.u64(0..3_000));
            }
            self.sent += 1;
            self.queue
                .insert((self.now + delay, self.sent), (to, from, frame));
        }
    }

    pub(crate) fn inject(&mut self, to: Mac, from: Mac, frame: Vec<u8>) {
        self.sent += 1;
        self.queue.insert((self.now, self.sent), (to, from, frame));
    }

    fn drain(&mut self) {
        let mut out = Vec::new();
        let mut frames = Vec::new();
        for node in &mut self.fabrics {
            let Some(fabric) = &mut node.fabric else {
                continue;
            };
            while let Some(to) = fabric.poll_transmit(self.now, &mut out) {
                assert!(out.len() <= usize::from(node.config.mtu) && out.len() >= HEADER_LEN);
                frames.push((to, node.mac, std::mem::take(&mut out)));
            }
            node.log.extend(std::iter::from_fn(|| fabric.poll_event()));
        }
        for node in self.links.iter_mut().filter(|n| n.alive) {
            while let Some(to) = node.link.poll_transmit(self.now, &mut out) {
                frames.push((to, node.mac, std::mem::take(&mut out)));
            }
            while let Some(event) = node.link.poll_event() {
                node.events.push((self.now, event));
            }
        }
        for (to, from, frame) in frames {
            self.send(to, from, &frame);
        }
    }

    fn deliver(&mut self, to: Mac, from: Mac, frame: &[u8]) {
        for node in &mut self.fabrics {
            if to != node.mac && to != FABRIC_MULTICAST {
                continue;
            }
            if let Some(fabric) = &mut node.fabric {
                let _ = fabric.handle(self.now, from, frame);
            }
        }
        let Ok((header, payload)) = Header::parse(frame, false) else {
            return;
        };
        for node in self.links.iter_mut().filter(|n| n.alive && n.mac == to) {
            if header.kind == Kind::Here {
                let _ = node.link.handle_here(self.now, from, payload);
            } else if node.link.owns(&header) {
                let _ = node.link.handle(self.now, from, &header, payload);
            }
        }
    }

    fn next(&self) -> Option<Time> {
        let frames = self.queue.keys().next().map(|(at, _)| *at);
        let fabrics = self.fabrics.iter().filter_map(|n| n.fabric.as_ref());
        let fabrics = fabrics.filter_map(Fabric::deadline);
        let links = self.links.iter().filter(|n| n.alive);
        let links = links.filter_map(|n| n.link.deadline());
        frames.into_iter().chain(fabrics).chain(links).min()
    }

    /// Lets time pass until `end`, or until `done` holds; whether it held.
    pub(crate) fn run_until(&mut self, end: Time, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let mut still = 0;
        loop {
            self.drain();
            if done(self) {
                return true;
            }
            let Some(next) = self.next().filter(|at| *at <= end) else {
                self.now = end;
                return false;
            };
            still = if next <= self.now { still + 1 } else { 0 };
            assert!(still < 20_000, "time stands still at {:?}", self.now);
            self.now = self.now.max(next);
            while let Some(entry) = self.queue.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (to, from, frame) = entry.remove();
                self.deliver(to, from, &frame);
            }
            for node in &mut self.fabrics {
                if let Some(fabric) = &mut node.fabric
                    && fabric.deadline().is_some_and(|at| at <= self.now)
                {
                    fabric.tick(self.now);
                }
            }
            for node in self.links.iter_mut().filter(|n| n.alive) {
                if node.link.deadline().is_some_and(|at| at <= self.now) {
                    node.link.tick(self.now);
                }
            }
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    /// Waits for `done`; panics when it does not come within `patience`. Gives the time it took.
    pub(crate) fn wait(
        &mut self,
        patience: Duration,
        what: &str,
        done: impl FnMut(&mut Self) -> bool,
    ) -> Duration {
        let start = self.now;
        assert!(
            self.run_until(start + patience, done),
            "not within {patience:?}: {what}"
        );
        self.now.since(start)
    }

    pub(crate) fn logged(&self, fabric: usize, text: &str) -> usize {
        let log = self.fabrics[fabric].log.iter();
        log.filter(|e| e.to_string().contains(text)).count()
    }
}

impl World<MemoryCatalog> {
    pub(crate) fn add_fabric(&mut self, guid: u128, policy: Policy) -> usize {
        self.add_fabric_on(guid, policy, 1500, MemoryCatalog::new())
    }

    /// Ends it as `kill -9` does: only what is durable stays.
    pub(crate) fn kill_fabric(&mut self, index: usize) {
        let node = &mut self.fabrics[index];
        let mut fabric = node.fabric.take().expect("it is up");
        node.disk = Some(fabric.catalog_mut().clone());
    }
}
