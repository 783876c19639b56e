//! Makes every kind of network at once, and then ends the lab in one of several ways. tests/lab_leaves_nothing.rs
//! checks that nothing is left.

use std::time::Duration;

use crate::endpoint::{peer, proxy};
use crate::network::Network;
use crate::story::{Case, Story, sleep};

/// The way in which the lab must end. Without it, the lab runs the other cases.
pub const ENDING: &str = "KA_LAB_ENDING";

pub fn case(ending: &str) -> Case {
    let ending = ending.to_owned();
    Case::new("traces::every_network", "nothing is left", move |story| run(story, &ending))
}

fn run(story: &mut Story, ending: &str) {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let (slow, _cable) = Network::slow(TIMEOUT);
    let networks = [
        Network::routed(),
        Network::with_nat(TIMEOUT),
        Network::with_load_balancer(TIMEOUT),
        Network::with_proxy(),
        slow,
    ];
    networks[0].drop_packets("ip protocol tcp");
    let _proxy = proxy(&networks[3]);
    let _peers = networks.each_ref().map(peer);
    story.watch(&networks[0].client);
    println!("built");
    match ending {
        "ends" => {}
        "waits" => sleep(600.0),
        _ => panic!("the test requested it: {ending}"),
    }
}
