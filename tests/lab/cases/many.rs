//! Measures when thousands of idle connections with one policy send probes, and the cost. docs/scale.md has the
//! results.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ka_test::log::skip;
use ka_test::process::raise_descriptor_limit;

use crate::endpoint::{Policy, is_open};
use crate::network::{Family, Network};
use crate::story::{Case, Needs, Story, now, sleep};
use crate::wire::Flow;

/// The number of connections, if the limit of open files allows both their ends.
pub const CONNECTIONS: usize = 5000;
const POLICY: Policy = Policy::new(4, 2, 3);
/// The seconds of observation, for several rounds of probes.
const WATCHED: f64 = 20.0;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "many::connections_made_together_probe_in_bursts_and_others_do_not",
            "all alive; made within a second: bursts once an idle time; made over an idle time: no bursts",
            run,
        )
        .needs(Needs::Machine),
    ]
}

fn run(story: &mut Story) {
    // If all connections probe in one moment, their packets fill the queues of the processors. The other cases use the
    // same queues.
    let Some(together) = probe(story, "within a second", Duration::from_millis(900)) else { return };
    let idle = Duration::from_secs(POLICY.idle.try_into().unwrap());
    let Some(spread) = probe(story, "over an idle time", idle) else { return };
    assert!(together.probes > 2.0, "no burst: {:.1} times the average", together.probes);
    // If a busy machine makes many connections in a second, they probe in the same second.
    let most = 2.0 * spread.connections.max(1.0);
    assert!(spread.probes < most, "a burst: {:.1} times the average, not {most:.1}", spread.probes);
}

/// The numbers of the busiest second, divided by the averages.
struct Peaks {
    connections: f64,
    probes: f64,
}

/// Makes the connections and counts their probes.
fn probe(story: &mut Story, label: &str, over: Duration) -> Option<Peaks> {
    let number = allowed();
    if number < CONNECTIONS / 5 {
        skip(&format!("many connections: the limit of open files allows {number} (ulimit -Hn)"));
        return None;
    }
    let others = load();
    let network = Network::routed();
    network.server.sysctl("core/somaxconn", 4096);
    let listener = network.listen();
    let before = memory();
    let start = Instant::now();
    let (made, servers) = thread::scope(|scope| {
        let servers =
            scope.spawn(|| (0..number).map(|_| listener.accept().unwrap().0).collect::<Vec<TcpStream>>());
        let made: Vec<(f64, TcpStream)> = network.client.within(|| {
            let address = (network.host(Family::V4), crate::network::PORT);
            let connect = |place| {
                let due = over.mul_f64(rate(place, 1.0) / rate(number, 1.0));
                thread::sleep(due.saturating_sub(start.elapsed()));
                let client = TcpStream::connect(address).unwrap();
                POLICY.enable(&client);
                (start.elapsed().as_secs_f64(), client)
            };
            (0..number).map(connect).collect()
        });
        (made, servers.join().unwrap())
    });
    let (connects, clients): (Vec<f64>, Vec<TcpStream>) = made.into_iter().unzip();
    let connected = start.elapsed().as_secs_f64();
    let after = memory();
    // Start the capture after the handshakes.
    story.watch(&network.client);
    let (from, cpu) = (now(), busy());
    sleep(WATCHED);
    let (seconds, cpu) = (now() - from, busy() - cpu);
    let file = story.file();
    let flows: Vec<Flow> = story.flows.drain(..).map(|shown| shown.flow).collect();
    let _ = fs::remove_file(file);

    // The capture lacks the handshakes, so it cannot tell probes from answers by sequence numbers. The direction tells
    // them apart, because nothing else is sent here.
    let (sent, answered) = (times(&flows, true), times(&flows, false));
    let (peak, average) = (peak(&sent), rate(sent.len(), seconds));
    story.seconds.push(connected);
    story.saw(format!(
        "{label}: {number} made in {connected:.2} s; {} probes, {} answers; {average:.0}/s on average, {peak}/s at the \
         peak; {:.1} KiB of kernel memory a connection, both ends; {}",
        sent.len(),
        answered.len(),
        (after - before) / rate(number, 1.0),
        cpu_of(cpu - others * seconds, others, sent.len()),
    ));
    assert_eq!(flows.len(), number, "connections that have probed");
    // A burst may overflow a queue on the path (net.core.netdev_max_backlog). Then the next probe is answered.
    assert!(answered.len() * 2 > sent.len(), "{} answers to {} probes", answered.len(), sent.len());
    for client in &clients {
        assert!(is_open(client), "a connection has ended");
    }
    drop(servers);
    story.rates.push((label.to_owned(), sent));
    if connected > over.as_secs_f64() + 0.6 {
        skip(&format!("bursts of many connections: this machine took {connected:.1} s to make them"));
        return None;
    }
    Some(Peaks {
        connections: rate(self::peak(&connects), 1.0) / rate(number, over.as_secs_f64()),
        probes: rate(peak, 1.0) / average,
    })
}

/// Returns how many processors are busy in the kernel with other work.
fn load() -> f64 {
    const WHILE: f64 = 2.0;
    let before = busy();
    sleep(WHILE);
    (busy() - before) / WHILE
}

/// Returns the CPU time of a probe as text. It is measured for the whole machine, so it is valid only if little else
/// runs.
fn cpu_of(seconds: f64, others: f64, probes: usize) -> String {
    if others > 0.05 {
        format!("CPU not measured: {:.0} % of a processor was busy with other work", others * 100.0)
    } else {
        format!("{:.1} us of CPU a probe with its answer", seconds / rate(probes, 1.0) * 1e6)
    }
}

/// Returns the number of connections that the limit of open files allows.
pub fn allowed() -> usize {
    // The files that the other cases may have open at the same time.
    let others = 1500;
    CONNECTIONS.min(raise_descriptor_limit().saturating_sub(others) / 2)
}

fn times(flows: &[Flow], from_client: bool) -> Vec<f64> {
    let packets = flows.iter().flat_map(|flow| &flow.packets);
    let mut times: Vec<f64> =
        packets.filter(|packet| packet.from_client == from_client).map(|packet| packet.time).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Returns the largest number in any second.
fn peak(times: &[f64]) -> usize {
    (0..times.len())
        .map(|first| times[first..].partition_point(|time| *time < times[first] + 1.0))
        .max()
        .unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "thousands")]
fn rate(number: usize, seconds: f64) -> f64 {
    number as f64 / seconds
}

/// Returns the seconds that this machine's processors have spent in the kernel.
fn busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<f64> =
        stat.lines().next().unwrap().split(' ').filter_map(|word| word.parse().ok()).collect();
    // proc_stat(5): system, irq, softirq
    [ticks[2], ticks[5], ticks[6]].iter().sum::<f64>() / 100.0
}

/// Returns the kernel's own memory in KiB.
fn memory() -> f64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| -> f64 {
        let line = meminfo.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).map_or(0.0, |kib| kib.parse().unwrap())
    };
    of("Slab:")
}
