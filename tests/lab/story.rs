//! A case and its record: the expected result, the actual result, and the times.

use std::fs;
use std::net::TcpStream;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Failed, Trial};

use crate::endpoint::is_open;
use crate::network::Machine;
use crate::wire::{self, Capture, Flow};

/// The conditions that a case needs. All cases share the processors' packet queues.
#[derive(Clone, Copy, PartialEq)]
pub enum Needs {
    /// No packet of the case may be lost by chance.
    Quiet,
    /// The case tolerates a lost packet.
    Nothing,
    /// The case fills the queues, or lists the processes of the whole machine. Cases that need quiet must not run at
    /// the same time.
    Machine,
}

/// Cases that need quiet hold this lock for reading.
static QUIET: RwLock<()> = RwLock::new(());

/// One row of the report, and one test.
pub struct Case {
    pub name: String,
    needs: Needs,
    /// The expected result, in words.
    pub should: String,
    run: Box<dyn FnOnce(&mut Story) + Send>,
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        should: impl Into<String>,
        run: impl FnOnce(&mut Story) + Send + 'static,
    ) -> Self {
        Self { name: name.into(), needs: Needs::Quiet, should: should.into(), run: Box::new(run) }
    }

    pub fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    /// Returns the test. It adds its record to `records`, even if it fails.
    pub fn trial(self, records: &Arc<Mutex<Vec<Record>>>) -> Trial {
        let records = Arc::clone(records);
        let Self { name, needs, should, run } = self;
        Trial::test(name.clone(), move || {
            if needs == Needs::Machine {
                // Let the other cases start first, because they end sooner.
                sleep(1.0);
            }
            let _reading = (needs == Needs::Quiet).then(|| QUIET.read());
            let _writing = (needs == Needs::Machine).then(|| QUIET.write());
            let mut story = Story::default();
            let result = panic::catch_unwind(AssertUnwindSafe(|| run(&mut story)));
            let failure = result.err().map(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
            });
            story.read();
            if let Some(file) = story.file.take() {
                let _ = fs::remove_file(file);
            }
            records.lock().unwrap().push(Record { name, should, story, failure: failure.clone() });
            failure.map_or(Ok(()), |failure| Err(Failed::from(failure)))
        })
    }
}

/// The record of a case that has run.
pub struct Record {
    pub name: String,
    pub should: String,
    pub story: Story,
    pub failure: Option<String>,
}

/// A connection in the report.
pub struct Shown {
    pub label: String,
    pub flow: Flow,
    /// The time and the kind of the end, as the program of the connection saw it.
    pub ended: Option<(f64, String)>,
}

/// The events of a case.
#[derive(Default)]
pub struct Story {
    capture: Option<Capture>,
    /// The file of tcpdump.
    file: Option<PathBuf>,
    /// The connections, oldest first.
    pub flows: Vec<Shown>,
    /// The times of all probes in order, if there are too many connections to show each.
    pub rates: Vec<(String, Vec<f64>)>,
    /// The changes of the network, and when they were made.
    pub marks: Vec<(f64, String)>,
    /// The actual result, in words.
    pub happened: Vec<String>,
    /// The measured times in seconds.
    pub seconds: Vec<f64>,
}

impl Story {
    /// Starts tcpdump at the client's end of the network.
    pub fn watch(&mut self, client: &Machine) {
        self.capture = Some(Capture::start(client, "eth0"));
    }

    /// Records a change of the network. Returns the current time.
    pub fn mark(&mut self, what: impl Into<String>) -> f64 {
        let time = now();
        self.marks.push((time, what.into()));
        time
    }

    /// Adds to the actual result.
    pub fn saw(&mut self, what: impl Into<String>) {
        self.happened.push(what.into());
    }

    /// Ends the capture, and returns its connections, oldest first. `labels` are their names in the report.
    pub fn flows(&mut self, labels: &[&str]) -> Vec<Flow> {
        self.read();
        assert_eq!(self.flows.len(), labels.len(), "the capture has a wrong number of connections");
        for (shown, label) in self.flows.iter_mut().zip(labels) {
            (*label).clone_into(&mut shown.label);
        }
        self.flows.iter().map(|shown| shown.flow.clone()).collect()
    }

    /// Records how the connection at this index ended.
    pub fn ended(&mut self, place: usize, time: f64, how: impl Into<String>) {
        self.flows[place].ended = Some((time, how.into()));
    }

    fn read(&mut self) {
        let Some(capture) = self.capture.take() else { return };
        let path = self.file.insert(capture.stop());
        self.flows = wire::read(path)
            .into_iter()
            .map(|(client, flow)| Shown { label: client.to_string(), flow, ended: None })
            .collect();
    }

    /// Waits until the first end of each pair has sent this many probes, or has ended. The pairs are oldest first.
    pub fn wait_for_probes(&self, pairs: &[(TcpStream, TcpStream)], probes: usize, most: f64) {
        let until = now() + most;
        let path = self.capture.as_ref().map(Capture::path).unwrap();
        while now() < until {
            sleep(1.0);
            let flows = wire::read(path);
            let mut pairs = pairs.iter().zip(&flows);
            if pairs.all(|((client, _), (_, flow))| flow.probes().len() >= probes || !is_open(client)) {
                return;
            }
        }
    }

    /// Ends the capture. Returns its file, which exists until the story is dropped.
    pub fn file(&mut self) -> PathBuf {
        self.read();
        self.file.clone().unwrap()
    }
}

/// Returns the seconds since 1970, on tcpdump's clock.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

pub fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}
