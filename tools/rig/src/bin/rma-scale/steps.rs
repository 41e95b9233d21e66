//! The steps that measure one cluster: boot, idling, changes, deaths, partitions, takeovers.

use std::time::{Duration, Instant};

use rma_rig::{Cluster, Daemon, Faults, Node, Plan, Watchers, wait_until};
use serde_json::{Value, json};

use super::{Args, Figures, Result, cost};

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long a cluster is left alone before it is called idle.
const CALM: Duration = Duration::from_secs(5);

pub(crate) fn cluster(args: &Args, figures: &mut Figures) -> Result<()> {
    let plan = plan(args);
    figures.note(
        "devices",
        json!(plan.units * plan.controllers * plan.devices),
    );
    let cluster = boot(args, plan, figures)?;
    if args.wants("idle") {
        idle(args, &cluster, figures)?;
    }
    if args.wants("change") {
        changes(args, &cluster, figures)?;
    }
    if args.wants("death") {
        deaths(args, &cluster, figures)?;
    }
    if args.wants("heal") {
        heals(args, &cluster, figures)?;
    }
    if args.wants("takeover") {
        takeovers(args, &cluster, figures)?;
    }
    figures.say("stopping");
    Ok(())
}

fn plan(args: &Args) -> Plan {
    let per_unit = args.devices.div_ceil(args.units);
    let controllers = if per_unit >= 2 { 2 } else { 1 };
    Plan {
        hosts: args.hosts,
        units: args.units,
        controllers,
        devices: per_unit.div_ceil(controllers),
        device_bytes: 1 << 20,
        backend: "memory",
        mtu: 1500,
        in_memory: !args.disk,
        ..Plan::default()
    }
}

/// Everything starts at once, with nothing stored, until all tables are equal and complete.
fn boot(args: &Args, plan: Plan, figures: &mut Figures) -> Result<Cluster> {
    let rows = plan.rows();
    figures.say(&format!(
        "making {} namespaces, then starting as many daemons; the table will have {rows} rows",
        1 + plan.units + plan.hosts
    ));
    let before = cost::own_cpu();
    let prepared = Cluster::prepare(plan)?;
    let capture = args
        .pcap
        .as_deref()
        .map(|path| prepared.rig().switch().capture(path))
        .transpose()?;
    let cluster = prepared.start()?;
    let started = cluster.started.elapsed();
    cluster.settle(PATIENCE)?;
    let took = cluster.started.elapsed();
    let switch = cost::own_cpu().saturating_sub(before);
    if let Some(capture) = capture {
        figures.say(&format!("{} frames recorded", capture.stop()?));
    }
    figures.note("start_s", seconds(started));
    figures.note("boot_s", seconds(took));
    figures.note("boot_hosts_cpu_s", seconds(cost::cpu_of(&cluster.hosts)));
    figures.note("boot_units_cpu_s", seconds(cost::cpu_of(&cluster.units)));
    figures.note("boot_fabric_cpu_s", seconds(cost::cpu(&cluster.fabric)));
    figures.note("boot_switch_cpu_s", seconds(switch));
    let frames = cluster.rig.switch().counters()?;
    figures.note(
        "boot_frames_per_host",
        json!(frames.received_frames / cluster.hosts.len() as u64),
    );
    figures.note("boot_switch_overruns", json!(frames.overrun));
    Ok(cluster)
}

fn idle(args: &Args, cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    figures.say(&format!("idling for {} s", args.idle_seconds));
    all_see_all(cluster)?;
    pause(CALM)?;
    let counters = || cluster.rig.switch().node_counters(cluster.hosts[0].node());
    let (began, frames) = (Instant::now(), counters()?);
    let before: Vec<Duration> = cluster.hosts.iter().map(cost::cpu).collect();
    let units = cost::cpu_of(&cluster.units);
    pause(Duration::from_secs(args.idle_seconds))?;
    let took = began.elapsed();
    let percent = |spent: Duration| 100.0 * spent.as_secs_f64() / took.as_secs_f64();
    let each: Vec<f64> = cluster
        .hosts
        .iter()
        .zip(before)
        .map(|(host, before)| percent(cost::cpu(host).saturating_sub(before)))
        .collect();
    let now = counters()?;
    let per_second = |count: u64| json!((count as f64 / took.as_secs_f64()).round());
    figures.note(
        "idle_frames_sent_per_s",
        per_second(now.received_frames - frames.received_frames),
    );
    figures.note(
        "idle_frames_heard_per_s",
        per_second(now.sent_frames - frames.sent_frames),
    );
    let mean = each.iter().sum::<f64>() / each.len() as f64;
    figures.note("idle_cpu_mean_percent", rounded(mean));
    let worst = each.iter().copied().fold(0.0, f64::max);
    figures.note("idle_cpu_percent", rounded(worst));
    let units = percent(cost::cpu_of(&cluster.units).saturating_sub(units));
    figures.note(
        "idle_unit_cpu_percent",
        rounded(units / cluster.units.len() as f64),
    );
    let rss = cluster.hosts.iter().map(|host| cost::memory_mib(host).0);
    figures.note("rss_cluster_mib", rounded(rss.fold(0.0, f64::max)));
    Ok(())
}

/// Allocations by one administrator, one after the other, until every host says that it has each.
fn changes(args: &Args, cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    figures.say(&format!(
        "{} allocations with {} % loss",
        args.changes, args.loss_percent
    ));
    for target in ["u1", "u1c1"] {
        cluster.rma(&["allocate", target, "--to", "h1,h2"])?;
    }
    all_equal(cluster)?;
    let hosts: Vec<&Daemon> = cluster.hosts.iter().collect();
    let mut watchers = Watchers::new(&hosts, PATIENCE)?;
    cluster.rig.switch().set_faults(Faults {
        loss_ppm: (args.loss_percent * 10_000.0) as u32,
        ..Faults::default()
    })?;
    let before = cost::cpu_of(&cluster.hosts);
    let (mut answers, mut all) = (Vec::new(), Vec::new());
    for number in 0..args.changes {
        let device = format!("u1c1d{}", 1 + number % cluster.plan.devices);
        let host = ["h1", "h2"][(number / cluster.plan.devices) % 2];
        let (answered, everywhere) = change(&cluster.hosts[0], &mut watchers, &device, host)?;
        answers.push(answered);
        all.push(everywhere);
    }
    let spent = cost::cpu_of(&cluster.hosts).saturating_sub(before);
    cluster.rig.switch().set_faults(Faults::default())?;
    figures.note("change_answer_p50_ms", millis(quantile(&mut answers, 0.5)));
    figures.note("change_answer_p99_ms", millis(quantile(&mut answers, 0.99)));
    figures.note("change_p50_ms", millis(quantile(&mut all, 0.5)));
    figures.note("change_p99_ms", millis(quantile(&mut all, 0.99)));
    figures.note(
        "change_cpu_ms",
        millis(spent / u32::try_from(args.changes)?),
    );
    Ok(())
}

/// One allocation: when it was answered, and when the last host said that it has it.
fn change(
    administrator: &Daemon,
    watchers: &mut Watchers,
    device: &str,
    host: &str,
) -> Result<(Duration, Duration)> {
    watchers.drain()?;
    let mut missing = watchers.open();
    let question = json!({"agent": {"verb": "allocate", "target": device, "hosts": [host]}});
    let began = Instant::now();
    let answer = administrator
        .ask(&question.to_string())
        .ok_or("the allocation is not answered")?;
    let answered = began.elapsed();
    if answer["agent"]["reply"] != "allocated" {
        return Err(format!("{device} to {host}: {answer}").into());
    }
    let mut last = answered;
    while !missing.is_empty() {
        if began.elapsed() > PATIENCE {
            return Err(format!(
                "{} hosts do not learn that {device} is {host}'s",
                missing.len()
            )
            .into());
        }
        for said in watchers.wait(Duration::from_millis(100))? {
            let event = &said.line["event"];
            let news = event["event"] == "ownership-changed"
                && event["row"]["name"] == device
                && event["after"]["owners"][0]["name"] == host;
            if news && missing.remove(&said.index) {
                last = last.max(said.at - began);
            }
        }
    }
    Ok((answered, last))
}

/// Hosts die without a word; how long until every other host calls them unreachable.
fn deaths(args: &Args, cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    let mut seen = Vec::new();
    for round in 0..args.rounds {
        all_see_all(cluster)?;
        let victim = &cluster.hosts[cluster.hosts.len() - 1 - round % (cluster.hosts.len() - 1)];
        let name = victim.node().name();
        figures.say(&format!("{name} dies"));
        let others: Vec<&Daemon> = cluster
            .hosts
            .iter()
            .filter(|host| host.node().name() != name)
            .collect();
        let mut watchers = Watchers::new(&others, PATIENCE)?;
        let mut missing = watchers.open();
        let began = Instant::now();
        victim.kill9()?;
        while !missing.is_empty() {
            if began.elapsed() > PATIENCE {
                return Err(format!("{} hosts still call {name} reachable", missing.len()).into());
            }
            for said in watchers.wait(Duration::from_millis(100))? {
                let event = &said.line["event"];
                if event["event"] == "unreachable" && event["name"] == name {
                    missing.remove(&said.index);
                }
            }
        }
        seen.push(began.elapsed());
        victim.restart()?;
    }
    figures.note("death_seen_s", worst(&seen));
    all_see_all(cluster)
}

/// The segment falls into two parts, one of them changes something, and the parts come together.
fn heals(args: &Args, cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    let mut healed = Vec::new();
    let (hosts, units) = (&cluster.hosts, &cluster.units);
    // The larger part has a majority of hosts and units.
    let (many, more) = (hosts.len() / 2 + 1, units.len() / 2 + 1);
    let nodes =
        |daemons: &[Daemon]| -> Vec<Node> { daemons.iter().map(|d| d.node().clone()).collect() };
    let mut large = nodes(&hosts[..many]);
    large.extend(nodes(&units[..more]));
    large.push(cluster.fabric.node().clone());
    let mut small = nodes(&hosts[many..]);
    small.extend(nodes(&units[more..]));
    cluster.rma(&["allocate", "u1", "--to", "h1,h2"])?;
    cluster.rma(&["allocate", "u1c1", "--to", "h1,h2"])?;
    for round in 0..args.rounds {
        all_see_all(cluster)?;
        figures.say("the segment falls into two parts");
        cluster.rig.switch().partition(
            &large.iter().collect::<Vec<_>>(),
            &small.iter().collect::<Vec<_>>(),
        )?;
        wait_until(PATIENCE, "the parts to lose sight of each other", || {
            let sees = |host: &Daemon, peers: usize| {
                host.status()
                    .is_some_and(|s| s["peers_reachable"] == peers as u64 - 1)
            };
            hosts[..many].iter().all(|h| sees(h, many))
                && hosts[many..].iter().all(|h| sees(h, hosts.len() - many))
        })?;
        let owner = ["h1", "h2"][round % 2];
        cluster.rma(&["allocate", "u1c1d1", "--to", owner])?;
        cluster.rig.switch().heal()?;
        let began = Instant::now();
        all_see_all(cluster)?;
        healed.push(began.elapsed());
    }
    figures.note("heal_s", worst(&healed));
    Ok(())
}

/// The holder of the allocation lease dies; how long until another host has it.
fn takeovers(args: &Args, cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    if !cluster.hosts[0].rma(&["lock", "--help"])?.status.success() {
        figures.say("this rma knows no lease: takeover is not measured");
        figures.note("takeover_s", Value::Null);
        return Ok(());
    }
    let mut took = Vec::new();
    for round in 0..args.rounds {
        all_see_all(cluster)?;
        let count = cluster.hosts.len();
        let (holder, heir) = (
            &cluster.hosts[round % count],
            &cluster.hosts[(round + 1) % count],
        );
        figures.say(&format!(
            "{} holds the lease and dies",
            holder.node().name()
        ));
        wait_until(PATIENCE, "the lease", || acquires(holder))?;
        holder.kill9()?;
        let began = Instant::now();
        wait_until(PATIENCE, "the lease to be taken over", || acquires(heir))?;
        took.push(began.elapsed());
        heir.rma(&["lock", "release"])?;
        holder.restart()?;
    }
    figures.note("takeover_s", worst(&took));
    Ok(())
}

fn acquires(host: &Daemon) -> bool {
    host.rma(&["lock", "acquire"])
        .is_ok_and(|output| output.status.success())
}

/// Waits until every host reaches every host and unit, and all tables are equal.
fn all_see_all(cluster: &Cluster) -> Result<()> {
    let (peers, units) = (cluster.hosts.len() as u64 - 1, cluster.units.len() as u64);
    let what = "every host to reach every other one and every unit, with equal tables";
    let mut digest = Value::Null;
    // Who is as wanted is not asked again before everybody is.
    let mut next = 0;
    Ok(wait_until(PATIENCE, what, || {
        while next < cluster.hosts.len() {
            let Some(status) = cluster.hosts[next].status() else {
                return false;
            };
            let sees = status["block"] == 0
                && status["peers_reachable"] == peers
                && status["units_reachable"] == units;
            if !sees {
                return false;
            }
            next += 1;
        }
        digest = Value::Null;
        let equal = cluster.hosts.iter().all(|host| {
            host.status().is_some_and(|status| {
                if digest.is_null() {
                    digest = status["table"]["digest"].clone();
                }
                status["table"]["digest"] == digest && status["peers_reachable"] == peers
            })
        });
        if !equal {
            next = 0;
        }
        equal
    })?)
}

/// Lets time pass.
fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    Ok(wait_until(time + PATIENCE, "time to pass", || {
        Instant::now() >= end
    })?)
}

fn all_equal(cluster: &Cluster) -> Result<()> {
    Ok(cluster.settle(PATIENCE)?)
}

fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let index = (values.len() as f64 * part).ceil() as usize;
    values[index.clamp(1, values.len()) - 1]
}

fn worst(values: &[Duration]) -> Value {
    seconds(values.iter().copied().max().unwrap_or_default())
}

fn seconds(duration: Duration) -> Value {
    json!((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}

fn millis(duration: Duration) -> Value {
    json!((duration.as_secs_f64() * 1e5).round() / 100.0)
}

fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}
