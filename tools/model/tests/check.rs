//! Every state of the models that can be reached is looked at, and every planted bug is found.

use std::time::{Duration, Instant};

use rma_model::{commit, lease};
use stateright::{Checker, Model};

/// How many threads look.
const THREADS: usize = 2;
/// A model that takes longer has become too large for this test.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks at all of a model; every property holds.
#[track_caller]
fn holds<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + std::hash::Hash + Clone + Send + Sync + PartialEq,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync,
{
    let begin = Instant::now();
    let checker = model
        .checker()
        .threads(THREADS)
        .timeout(PATIENCE)
        .spawn_bfs()
        .join();
    println!(
        "{name}: {} states, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        begin.elapsed().as_secs_f64()
    );
    checker.assert_properties();
    // A checker that ran out of time also says that it is done.
    assert!(
        begin.elapsed() < PATIENCE,
        "{name}: not all states in {PATIENCE:?}"
    );
}

/// Looks until some property is broken.
#[track_caller]
fn is_caught<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + std::hash::Hash + Clone + Send + Sync + PartialEq,
    M::Action: std::fmt::Debug + Clone + PartialEq + Send + Sync,
{
    let begin = Instant::now();
    let checker = model
        .checker()
        .threads(THREADS)
        .timeout(PATIENCE)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let broken: Vec<&str> = checker
        .discoveries()
        .into_iter()
        .filter(|(name, _)| {
            matches!(
                checker.discovery_classification(name),
                stateright::DiscoveryClassification::Counterexample
            )
        })
        .map(|(name, _)| name)
        .collect();
    println!(
        "{name}: {broken:?} after {} states, {:.1} s",
        checker.unique_state_count(),
        begin.elapsed().as_secs_f64()
    );
    assert!(!broken.is_empty(), "{name} is not caught");
}

const LEASE: lease::LeaseModel = lease::LeaseModel {
    steps: 4,
    asks: 1,
    renewals: 0,
    crashes: 1,
    releases: false,
    settles: 0,
    bug: None,
};

/// Time stands still; the holder releases, and settings change.
const SETTINGS: lease::LeaseModel = lease::LeaseModel {
    steps: 0,
    crashes: 0,
    releases: true,
    settles: 1,
    ..LEASE
};

#[test]
fn the_lease_is_held_by_one_host_at_a_time() {
    holds("lease", LEASE);
}

#[test]
fn settings_that_were_acknowledged_are_known_to_every_later_session() {
    holds("settings", SETTINGS);
}

const COMMIT: commit::CommitModel = commit::CommitModel {
    sessions: 2,
    changes: 1,
    crashes: 1,
    tellings: 1,
    bug: None,
};

#[test]
fn what_commits_is_never_lost() {
    holds("commit", COMMIT);
}

#[test]
fn every_mistake_in_commits_is_found() {
    for bug in commit::BUGS {
        let model = commit::CommitModel {
            bug: Some(*bug),
            ..COMMIT
        };
        is_caught(&format!("{bug:?}"), model);
    }
}

#[test]
fn every_mistake_in_the_lease_is_found() {
    for bug in lease::BUGS {
        let about_settings = *bug == lease::Bug::SettingsNotLearned;
        let model = lease::LeaseModel {
            bug: Some(*bug),
            ..if about_settings { SETTINGS } else { LEASE }
        };
        is_caught(&format!("{bug:?}"), model);
    }
}
