//! The software switch: the handle that tests hold. The work is the [`engine`]'s.

mod capture;
mod engine;
mod faults;
mod port;

pub use faults::Faults;
pub use port::PortCounters;
pub(crate) use port::PortId;

use crate::{Namespace, Node, RigError, system};
use capture::Recorder;
use engine::{Engine, Task};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// What the switch's thread has before others where all want a processor (`nice`).
const NICENESS: i32 = -15;

/// A learning switch between the nodes of a rig. Clones are the same switch.
///
/// What is set holds for every frame that is forwarded after the call has returned.
#[derive(Debug, Clone)]
pub struct Switch {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespace: Namespace,
    tasks: Sender<Task>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A capture that is being written; it ends when this is dropped.
#[derive(Debug)]
pub struct Capture {
    switch: Switch,
}

impl Switch {
    pub(crate) fn start(seed: u64) -> Result<Self, RigError> {
        let namespace = Namespace::new()?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_value_and_flags(0, flags).map_err(system("make an eventfd"))?;
        let wake = Arc::new(wake);
        let (tasks, queue) = mpsc::channel();
        let engine =
            Engine::new(seed, Arc::clone(&wake), queue).map_err(system("make the switch"))?;
        let place = namespace.clone();
        // The thread lives in the switch's namespace, and so do the sockets it opens.
        let thread = thread::Builder::new()
            .name("rig-switch".into())
            .spawn(move || {
                go_first();
                if let Err(error) = place.join_thread().and_then(|()| engine.run()) {
                    eprintln!("rig: the switch has failed: {error}");
                }
            })
            .map_err(system("start a thread"))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self {
            inner: Arc::new(Inner {
                namespace,
                tasks,
                wake,
                thread,
            }),
        })
    }

    /// The namespace that the switch's ends of all cables are in.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }

    /// Starts forwarding on a port whose interface is there, anew if it was another before.
    pub(crate) fn open(&self, port: PortId) -> Result<(), RigError> {
        self.ask(move |engine| engine.open(port))?
            .map_err(system(format!("open port {port}")))
    }

    /// Sets what happens to every frame.
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn set_faults(&self, faults: Faults) -> Result<(), RigError> {
        self.ask(move |engine| engine.set_faults(faults))
    }

    /// Sets what happens, on top, to every frame from or to a node.
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn set_node_faults(&self, node: &Node, faults: Faults) -> Result<(), RigError> {
        let ports: Vec<_> = node.ports().collect();
        self.ask(move |engine| engine.set_port_faults(&ports, faults))
    }

    /// Sets what happens, on top, to every frame from or to one interface of a node (0 is `eth0`).
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn set_nic_faults(&self, node: &Node, nic: usize, faults: Faults) -> Result<(), RigError> {
        let ports: Vec<_> = node.ports().skip(nic).take(1).collect();
        self.ask(move |engine| engine.set_port_faults(&ports, faults))
    }

    /// Lets nothing pass between the nodes of one side and those of the other, in either direction,
    /// in addition to what is partitioned already.
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn partition(&self, one: &[&Node], other: &[&Node]) -> Result<(), RigError> {
        let ports = |side: &[&Node]| {
            side.iter()
                .flat_map(|node| node.ports())
                .collect::<Vec<_>>()
        };
        let (one, other) = (ports(one), ports(other));
        self.ask(move |engine| engine.partition(&one, &other))
    }

    /// Ends all partitions. Faults stay.
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn heal(&self) -> Result<(), RigError> {
        self.ask(Engine::heal)
    }

    /// Writes every frame, as it comes from its sender and before any fault, to a pcap file
    /// (nanoseconds, Ethernet) until the returned guard is stopped or dropped. A capture that was
    /// being written ends.
    ///
    /// # Errors
    /// [`RigError::Capture`], [`RigError::SwitchStopped`].
    pub fn capture(&self, path: &Path) -> Result<Capture, RigError> {
        let recorder = Recorder::create(path)?;
        self.ask(move |engine| engine.record(Some(recorder)))??;
        Ok(Capture {
            switch: self.clone(),
        })
    }

    /// What all ports have done together.
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn counters(&self) -> Result<PortCounters, RigError> {
        self.ask(|engine| engine.counters(|_| true))
    }

    /// What the ports of a node have done: *received* is what the node has sent.
    ///
    /// # Errors
    /// [`RigError::SwitchStopped`].
    pub fn node_counters(&self, node: &Node) -> Result<PortCounters, RigError> {
        let ports: Vec<_> = node.ports().collect();
        self.ask(move |engine| engine.counters(|port| ports.contains(&port)))
    }

    /// Ends the switch's thread; every later call fails.
    pub(crate) fn stop(&self) {
        self.inner.stop();
    }

    /// Has the switch's thread do something, and waits for the answer.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, RigError> {
        let (answer, result) = mpsc::channel();
        self.inner.tell(Box::new(move |engine| {
            // Whoever asked waits for it, below.
            let _ = answer.send(question(engine));
        }));
        result.recv().map_err(|_| RigError::SwitchStopped)
    }
}

/// Has the calling thread go before others: a wire does not wait for the machines on it. One that may not
/// goes on as it is; where the machine is busy with other things, frames then wait for seconds in it.
fn go_first() {
    let _ = rustix::process::setpriority_process(None, NICENESS);
}

impl Inner {
    fn tell(&self, task: Task) {
        // A thread that has ended drops the task, and with it the sender that an answer waits for.
        if self.tasks.send(task).is_ok() {
            let _ = self.wake.write(1);
        }
    }

    fn stop(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            self.tell(Box::new(Engine::stop));
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Capture {
    /// Ends the capture; when this returns, the file is complete. How many frames it has.
    ///
    /// # Errors
    /// [`RigError::Capture`], [`RigError::SwitchStopped`].
    pub fn stop(self) -> Result<u64, RigError> {
        self.switch.ask(|engine| engine.record(None))?
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // After a stop there is nothing left to end; an error has been told there.
        let _ = self.switch.ask(|engine| engine.record(None));
    }
}
