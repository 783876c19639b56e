//! `ka run`: starts a program in this process, and applies the policy to the program's sockets.

use ka_core::Config;
use ka_reach::escape;

use crate::args;
use crate::failure::{CommandResult, Failure, RUN_FAILED, warn};
use crate::policy_sources::{Flags, PolicySources};
use crate::program::Program;
use crate::via::{self, Obstacle, Reachability, StartRequest, Way};

/// The cost of seccomp for a connection. docs/performance.md has the measurement.
const COST: &str = "Each new connection takes at least 25 % longer";

pub(crate) fn run(args: &args::RunArgs) -> CommandResult {
    let run_failed = |failure: Failure| failure.with_status(RUN_FAILED);
    let config = if args.policy.is_named() { Some(named_policy(args).map_err(run_failed)?) } else { None };
    let program = Program::from_command(&args.program).map_err(|failure| {
        let message = format!("run: {}", failure.message);
        Failure { message, ..failure }
    })?;
    let request = StartRequest {
        program: &program,
        arguments: &args.program,
        flags: Flags { config, is_whole: args.policy.whole.is_some(), mode: args.mode },
        verbose: args.verbose,
        best_effort: args.best_effort,
        denies_io_uring: args.no_io_uring,
    };
    PolicySources::of_this_process().warn_of_names();
    if let Some(failure) = via::start_under_outer(&request) {
        return Err(failure);
    }
    if let Some(why) = via::cgroup_override(&request) {
        warn(format_args!("run: {why}"));
    }
    if request.verbose {
        for (client, name) in program.chain().filter_map(|program| Some((program.client?, program.name()))) {
            warn(format_args!("{}: {}", escape::visible(name.as_encoded_bytes()), client.text()));
        }
    }
    // Use the first way that reaches the program.
    let mut obstacles: Vec<(&dyn Way, Obstacle)> = Vec::new();
    for way in via::selected(args.via) {
        match way.check(&request) {
            Reachability::Reached(how) => {
                // seccomp changes more than preload does, and the user may not expect that. So print why ka uses it.
                let missing = via::preload_obstacle();
                for (passed, Obstacle { why, .. }) in &obstacles {
                    if missing.as_ref() == Some(why) {
                        warn(format_args!(
                            "run: {why}; reaching the program via {0} instead: {how}. {COST}. To avoid this message, \
                             install libka_preload.so, name it in KA_PRELOAD, or use --via {0}",
                            way.name(),
                        ));
                    } else if request.verbose {
                        warn(format_args!("{} does not reach the program: {why}", passed.name()));
                    }
                }
                match way.start(&request)? {}
            }
            Reachability::NotReached(obstacle) => obstacles.push((way, obstacle)),
            Reachability::Forbidden(obstacle) => {
                obstacles = vec![(way, obstacle)];
                break;
            }
        }
    }
    let (Some((way, _)), Some((_, last))) = (obstacles.first(), obstacles.last()) else {
        return Err(run_failed(Failure::new("run: no way to reach the program was tried")));
    };
    let whys: Vec<&str> = obstacles.iter().map(|(_, obstacle)| obstacle.why.as_str()).collect();
    let message = format!("run: {}; use {}", whys.join("; "), last.instead);
    if !args.best_effort {
        return Err(run_failed(Failure::new(message)));
    }
    warn(format_args!("{message}; running it WITHOUT keepalive"));
    // The way may still reach programs that this one starts.
    match way.start(&request)? {}
}

/// Returns the values that the flags name. If --policy is given, returns all values. Rejects a policy that does not
/// turn keepalive on.
fn named_policy(args: &args::RunArgs) -> Result<Config, Failure> {
    let whole = args.policy.config_on()?;
    if args.policy.whole.is_some() { Ok(whole) } else { args.policy.named_values() }
}
