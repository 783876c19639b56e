//! A case, and what is to be told of it: what should happen, what did, and when.

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

/// What a case needs of the others, which share the processors' queues of packets with it.
#[derive(Clone, Copy, PartialEq)]
pub enum Needs {
    /// No packet of it may be lost by chance.
    Quiet,
    /// It may lose a packet.
    Nothing,
    /// It fills the queues: those that need quiet must not run meanwhile.
    Machine,
}

/// Held for reading by those that need quiet.
static QUIET: RwLock<()> = RwLock::new(());

/// One row of the report, and one test.
pub struct Case {
    pub name: String,
    needs: Needs,
    /// What should happen.
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

    /// The test. What it saw is added to the records, also where it fails.
    pub fn trial(self, records: &Arc<Mutex<Vec<Record>>>) -> Trial {
        let records = Arc::clone(records);
        let Self { name, needs, should, run } = self;
        Trial::test(name.clone(), move || {
            if needs == Needs::Machine {
                // Let the others begin first: they end sooner than this.
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

/// A case that was run.
pub struct Record {
    pub name: String,
    pub should: String,
    pub story: Story,
    pub failure: Option<String>,
}

/// A connection, as the report shows it.
pub struct Shown {
    pub label: String,
    pub flow: Flow,
    /// When and how it ended, as its program was told.
    pub ended: Option<(f64, String)>,
}

/// What happens in a case.
#[derive(Default)]
pub struct Story {
    capture: Option<Capture>,
    /// What tcpdump wrote.
    file: Option<PathBuf>,
    /// The connections, in the order in which they were made.
    pub flows: Vec<Shown>,
    /// The moments of many connections' probes, in order, where there are too many to show each connection.
    pub rates: Vec<(String, Vec<f64>)>,
    /// What was done to the network, and when.
    pub marks: Vec<(f64, String)>,
    /// What was seen, in words.
    pub happened: Vec<String>,
    /// The seconds that the case is about.
    pub seconds: Vec<f64>,
}

impl Story {
    /// Has tcpdump look at the client's end of the network.
    pub fn watch(&mut self, client: &Machine) {
        self.capture = Some(Capture::start(client, "eth0"));
    }

    /// Remembers what is done now.
    pub fn mark(&mut self, what: impl Into<String>) -> f64 {
        let time = now();
        self.marks.push((time, what.into()));
        time
    }

    /// Says what was seen.
    pub fn saw(&mut self, what: impl Into<String>) {
        self.happened.push(what.into());
    }

    /// Ends the capture and reads it: the connections, with the names that they get in the order in which they were made.
    pub fn flows(&mut self, labels: &[&str]) -> Vec<Flow> {
        self.read();
        assert_eq!(self.flows.len(), labels.len(), "other connections were seen than were made");
        for (shown, label) in self.flows.iter_mut().zip(labels) {
            (*label).clone_into(&mut shown.label);
        }
        self.flows.iter().map(|shown| shown.flow.clone()).collect()
    }

    /// Remembers how a connection ended, by its place.
    pub fn ended(&mut self, place: usize, time: f64, how: impl Into<String>) {
        self.flows[place].ended = Some((time, how.into()));
    }

    fn read(&mut self) {
        let Some(capture) = self.capture.take() else { return };
        let path = self.file.insert(capture.stop());
        self.flows = wire::read(path)
            .into_iter()
            .map(|(port, flow)| Shown { label: format!("port {port}"), flow, ended: None })
            .collect();
    }

    /// Waits until the first of each pair, in the order in which they were made, has sent so many probes or ended.
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

    /// Ends the capture and gives its file, which is there as long as this.
    pub fn file(&mut self) -> PathBuf {
        self.read();
        self.file.clone().unwrap()
    }
}

/// Seconds since 1970, on tcpdump's clock.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

pub fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}
