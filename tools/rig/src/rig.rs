//! A whole test network: nodes, their interfaces, and the switch between them.

use crate::directory::Directory;
use crate::namespace::bring_up;
use crate::process::Spawner;
use crate::switch::PortId;
use crate::{Namespace, Output, Process, RigError, Switch, harness, system, wait_until};
use rma::wire::Mac;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How many of a log's last lines a failed test shows.
const LOG_TAIL_LINES: usize = 40;
/// Number of the first station whose address the rig chooses; lower ones are for tests.
const FIRST_OWN_STATION: u32 = 0x0100_0000;
/// How long a new wire may take to carry frames.
const CARRIER_DEADLINE: Duration = Duration::from_secs(5);
/// MTU of the switch's own ends; those of the nodes may be smaller.
const SWITCH_MTU: u16 = 9000;

/// How a node is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// One interface (`eth0`, `eth1` …) for each; none means one with an address of the rig's.
    pub macs: Vec<Mac>,
    /// The MTU of its interfaces, at most 9000.
    pub mtu: u16,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            macs: Vec::new(),
            mtu: 1500,
        }
    }
}

impl NodeOptions {
    /// A node with an interface of this address.
    pub fn new(mac: Mac) -> Self {
        Self {
            macs: vec![mac],
            ..Self::default()
        }
    }

    /// Adds an interface.
    pub fn nic(mut self, mac: Mac) -> Self {
        self.macs.push(mac);
        self
    }

    /// Sets the MTU.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }
}

/// A predictable station address, the same for the same number. Those that the rig chooses itself are
/// of numbers from 2^24.
pub fn station(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x02, 0x72, a, b, c, d])
}

/// A test network. Dropping it ends its processes and removes everything it made.
#[derive(Debug)]
pub struct Rig {
    switch: Switch,
    shared: Arc<Shared>,
    next_port: AtomicU32,
    next_station: AtomicU32,
    /// Last, so that it goes when nothing writes to it any more.
    directory: Directory,
}

/// What nodes need of their rig.
#[derive(Debug)]
struct Shared {
    /// `None` when the rig has ended.
    spawner: Mutex<Option<Arc<Spawner>>>,
}

impl Rig {
    /// An empty network whose faults are drawn from a fixed seed.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn new() -> Result<Self, RigError> {
        Self::with_seed(1)
    }

    /// An empty network with a seed for its faults.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn with_seed(seed: u64) -> Result<Self, RigError> {
        Self::build(seed, None)
    }

    /// As [`Rig::new`], with the directory in memory where there is a file system for it: a hundred
    /// machines that make things durable on one disk wait for each other as real ones never do.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn in_memory() -> Result<Self, RigError> {
        let shm = Path::new("/dev/shm");
        let writable = nix::unistd::access(shm, nix::unistd::AccessFlags::W_OK).is_ok();
        Self::build(1, writable.then_some(shm))
    }

    fn build(seed: u64, parent: Option<&Path>) -> Result<Self, RigError> {
        let directory = Directory::new(parent)?;
        let spawner = Arc::new(Spawner::new(directory.path())?);
        Ok(Self {
            switch: Switch::start(seed)?,
            shared: Arc::new(Shared {
                spawner: Mutex::new(Some(spawner)),
            }),
            next_port: AtomicU32::new(0),
            next_station: AtomicU32::new(FIRST_OWN_STATION),
            directory,
        })
    }

    /// The switch that joins the nodes.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// A directory for whatever a test needs; it goes with the rig.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Adds a node and connects it to the switch.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Ip`].
    pub fn add_node(&self, name: &str, options: NodeOptions) -> Result<Node, RigError> {
        let mut nodes = self.add_nodes(vec![(name.into(), options)])?;
        Ok(nodes.pop().expect("as many nodes as asked for"))
    }

    /// Adds many nodes, in one go, and connects them to the switch.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Ip`].
    pub fn add_nodes(&self, wanted: Vec<(String, NodeOptions)>) -> Result<Vec<Node>, RigError> {
        let mut nodes = Vec::with_capacity(wanted.len());
        let mut batch = String::new();
        for (name, mut options) in wanted {
            if options.macs.is_empty() {
                options
                    .macs
                    .push(station(self.next_station.fetch_add(1, Ordering::Relaxed)));
            }
            let node = Node {
                name,
                namespace: Namespace::new()?,
                nics: Vec::with_capacity(options.macs.len()),
                switch: self.switch.clone(),
                shared: Arc::clone(&self.shared),
            };
            let nics = options.macs.iter().enumerate().map(|(index, &mac)| Nic {
                name: format!("eth{index}"),
                mac,
                mtu: options.mtu,
                port: PortId(self.next_port.fetch_add(1, Ordering::Relaxed)),
            });
            let node = Node {
                nics: nics.collect(),
                ..node
            };
            for nic in &node.nics {
                batch.push_str(&nic.creation(&node.namespace));
            }
            nodes.push(node);
        }
        self.switch.namespace().ip(&batch)?;
        for node in &nodes {
            node.connect(&node.nics)?;
        }
        Ok(nodes)
    }

    /// A veth pair straight from one node to another, past the switch: for measurements that the
    /// switch must not be part of. Returns the interface's name, the same at both ends.
    ///
    /// # Errors
    /// [`RigError::Ip`].
    pub fn join(&self, a: &Node, b: &Node, mtu: u16) -> Result<String, RigError> {
        let number = self.next_station.fetch_add(2, Ordering::Relaxed);
        let (here, there) = (station(number), station(number + 1));
        let name = format!("wire{number}");
        let peer = b.namespace.path();
        a.namespace.ip(&format!(
            "link add {name} mtu {mtu} address {here} up \
             type veth peer name {name} mtu {mtu} address {there} netns {peer}\n"
        ))?;
        b.bring_up(&name)?;
        a.wait_for_queues(&[&name])?;
        Ok(name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let spawner = self
            .shared
            .spawner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(spawner) = spawner else { return };
        for process in spawner.started() {
            harness::leave(&process.log_tail(LOG_TAIL_LINES));
        }
        drop(spawner);
        self.switch.stop();
    }
}

/// A host, a unit or fabric services: a network namespace with interfaces on the switch.
#[derive(Debug, Clone)]
pub struct Node {
    name: String,
    namespace: Namespace,
    nics: Vec<Nic>,
    switch: Switch,
    shared: Arc<Shared>,
}

/// One interface of a node.
#[derive(Debug, Clone)]
struct Nic {
    name: String,
    mac: Mac,
    mtu: u16,
    port: PortId,
}

impl Nic {
    /// The `ip` command, for the switch's namespace, that makes it.
    fn creation(&self, node: &Namespace) -> String {
        let Self {
            name,
            mac,
            mtu,
            port,
        } = self;
        format!(
            "link add {port} mtu {SWITCH_MTU} up type veth \
             peer name {name} mtu {mtu} address {mac} netns {}\n",
            node.path()
        )
    }
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of its first interface.
    pub fn mac(&self) -> Mac {
        self.nics[0].mac
    }

    /// The addresses of all its interfaces, `eth0` first.
    pub fn macs(&self) -> Vec<Mac> {
        self.nics.iter().map(|nic| nic.mac).collect()
    }

    /// The namespace it is.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The switch's ports that its interfaces are connected to.
    pub(crate) fn ports(&self) -> impl Iterator<Item = PortId> {
        self.nics.iter().map(|nic| nic.port)
    }

    /// Starts a process in the node; its output goes to a log. Standard input is empty.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn spawn(&self, command: &mut Command) -> Result<Process, RigError> {
        self.spawner()?.spawn(&self.name, &self.namespace, command)
    }

    /// Runs a process in the node to its end, and kills it if it takes longer than `deadline`.
    ///
    /// # Errors
    /// [`RigError::Timeout`], [`RigError::System`]. A status other than 0 is none.
    pub fn run(&self, command: &mut Command, deadline: Duration) -> Result<Output, RigError> {
        self.spawner()?
            .run(&self.name, &self.namespace, command, deadline)
    }

    /// Runs `body` on a thread of its own inside the node. A panic in there goes on here.
    ///
    /// # Errors
    /// [`RigError::System`] if the namespace cannot be entered.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, RigError> {
        self.namespace.enter(body)
    }

    /// Pulls all its cables: its interfaces lose their carrier.
    ///
    /// # Errors
    /// [`RigError::Ip`].
    pub fn link_down(&self) -> Result<(), RigError> {
        self.set_cables("down")
    }

    /// Plugs the cables in again; returns when its interfaces send.
    ///
    /// # Errors
    /// [`RigError::Ip`], [`RigError::Timeout`].
    pub fn link_up(&self) -> Result<(), RigError> {
        self.set_cables("up")?;
        let names: Vec<_> = self.nics.iter().map(|nic| nic.name.as_str()).collect();
        self.wait_for_queues(&names)
    }

    /// Pulls the cable of one interface (0 is `eth0`).
    ///
    /// # Errors
    /// [`RigError::Ip`].
    pub fn nic_link_down(&self, index: usize) -> Result<(), RigError> {
        self.switch
            .namespace()
            .ip(&format!("link set {} down\n", self.nics[index].port))
    }

    /// Plugs the cable of one interface in again; returns when the interface sends.
    ///
    /// # Errors
    /// [`RigError::Ip`], [`RigError::Timeout`].
    pub fn nic_link_up(&self, index: usize) -> Result<(), RigError> {
        let nic = &self.nics[index];
        let switch = self.switch.namespace();
        switch.ip(&format!("link set {} up\n", nic.port))?;
        self.wait_for_queues(&[&nic.name])
    }

    /// Takes an interface down as an administrator of the node would.
    ///
    /// # Errors
    /// [`RigError::Ip`].
    pub fn interface_down(&self, index: usize) -> Result<(), RigError> {
        self.namespace
            .ip(&format!("link set {} down\n", self.nics[index].name))
    }

    /// Brings an interface up as an administrator of the node would.
    ///
    /// # Errors
    /// [`RigError::Ip`].
    pub fn interface_up(&self, index: usize) -> Result<(), RigError> {
        self.namespace
            .ip(&format!("link set {} up\n", self.nics[index].name))
    }

    /// Takes an interface out of the node, as if its driver were unloaded.
    ///
    /// # Errors
    /// [`RigError::Ip`].
    pub fn remove_interface(&self, index: usize) -> Result<(), RigError> {
        self.namespace
            .ip(&format!("link del {}\n", self.nics[index].name))
    }

    /// Puts a removed interface back, with its name and address.
    ///
    /// # Errors
    /// [`RigError::Ip`], [`RigError::System`].
    pub fn restore_interface(&self, index: usize) -> Result<(), RigError> {
        let nic = &self.nics[index];
        self.switch.namespace().ip(&nic.creation(&self.namespace))?;
        self.connect(std::slice::from_ref(nic))
    }

    /// Brings new interfaces up and opens their ports of the switch.
    fn connect(&self, nics: &[Nic]) -> Result<(), RigError> {
        for nic in nics {
            self.bring_up(&nic.name)?;
            self.switch.open(nic.port)?;
        }
        Ok(())
    }

    /// Brings an interface up that could not be made so: its other end was not there yet.
    ///
    /// The second of the two ends to come up can send at once; the first one's queue starts when the
    /// kernel gets around to it, which the switch does not wait for: it sends past the queue.
    fn bring_up(&self, interface: &str) -> Result<(), RigError> {
        let result = self.enter(|| bring_up(interface))?;
        result.map_err(system(format!("bring {interface} of {} up", self.name)))
    }

    /// Waits until the queues of interfaces have started. The kernel does that some time after a
    /// carrier has come, on its own, and until then drops what is sent without a word.
    fn wait_for_queues(&self, interfaces: &[&str]) -> Result<(), RigError> {
        for interface in interfaces {
            let mut looked = Ok(String::new());
            wait_until(
                CARRIER_DEADLINE,
                &format!("{interface} of {} to send", self.name),
                || {
                    looked = self.namespace.ip_says(&["link", "show", "dev", interface]);
                    !matches!(&looked, Ok(text) if text.contains("qdisc noop "))
                },
            )?;
            looked?;
        }
        Ok(())
    }

    fn set_cables(&self, state: &str) -> Result<(), RigError> {
        let mut batch = String::new();
        for port in self.ports() {
            let _ = writeln!(batch, "link set {port} {state}");
        }
        self.switch.namespace().ip(&batch)
    }

    fn spawner(&self) -> Result<Arc<Spawner>, RigError> {
        let spawner = self
            .shared
            .spawner
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        spawner.clone().ok_or_else(|| RigError::System {
            action: format!("start a process on {}", self.name),
            source: std::io::Error::other("the rig has ended"),
        })
    }
}
