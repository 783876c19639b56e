//! The numbers that `ka watch --metrics` publishes. `ka` sends them to the program that answers HTTP requests.

use serde::{Deserialize, Serialize};

use super::{Cause, ConnectionCounts, LastList, Watch, WatchEvent, WatchSource};

/// The values of all metrics. No value names an address, a process or a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The name of the [`WatchSource`].
    pub source: String,
    /// The open connections.
    pub connections: ConnectionCounts,
    /// The number of connections that have ended abnormally, in the order of [`Cause::ALL`].
    pub deaths: [u64; Cause::ALL.len()],
    /// The number of ends that were not reported, because the kernel dropped the reports.
    pub dropped: u64,
    /// The number of ends that were not reported, because it is unknown which connections ended.
    pub unclear: u64,
    /// The number of keepalive probes that the kernel has sent.
    pub probes: u64,
    /// The number of incomplete lists.
    pub incomplete: u64,
    /// The last list of the connections.
    pub last_list: Option<LastList>,
}

impl Metrics {
    /// Returns the metrics of a watch that has reported nothing yet.
    #[must_use]
    pub fn new(source: WatchSource) -> Self {
        Self {
            source: source.name().to_owned(),
            connections: ConnectionCounts::default(),
            deaths: [0; Cause::ALL.len()],
            dropped: 0,
            unclear: 0,
            probes: 0,
            incomplete: 0,
            last_list: None,
        }
    }

    /// Counts events.
    pub fn count(&mut self, events: &[WatchEvent]) {
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        for event in events {
            match event {
                WatchEvent::Died(death) => {
                    for (count, _) in
                        self.deaths.iter_mut().zip(Cause::ALL).filter(|(_, cause)| *cause == death.cause)
                    {
                        *count += 1;
                    }
                }
                WatchEvent::Missed(count) => self.dropped += wide(*count),
                WatchEvent::Unclear(count) => self.unclear += wide(*count),
                WatchEvent::Incomplete(_) => self.incomplete += 1,
            }
        }
    }

    /// Copies the numbers of the last list of the connections, if there is a newer one.
    pub fn update(&mut self, watch: &Watch) {
        if self.last_list != watch.last_list() {
            self.last_list = watch.last_list();
            self.connections = watch.counts();
            self.probes = watch.probes();
        }
    }
}
