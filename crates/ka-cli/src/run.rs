//! `ka run`: becomes a program whose sockets all have the policy.

use std::io::{self, Write as _};

use ka_core::Config;

use crate::args;
use crate::failure::{Failure, OUR_OWN, Outcome};
use crate::program::Program;
use crate::via::{self, Flags, Launch, Reach, Way};
use ka_reach::text;

/// The cost of seccomp for a connection. Measured in docs/ways.md.
const COST: &str = "Each connection takes a quarter longer or more";

pub(crate) fn run(args: &args::Run) -> Outcome {
    let own = |failure: Failure| failure.with_status(OUR_OWN);
    let said = if args.policy.is_named() { Some(said(args).map_err(own)?) } else { None };
    let program = Program::with(&args.program).map_err(|failure| {
        let message = format!("run: {}", failure.message);
        Failure { message, ..failure }
    })?;
    let launch = Launch {
        program: &program,
        arguments: &args.program,
        flags: Flags { said, is_whole: args.policy.whole.is_some(), mode: args.mode },
        verbose: args.verbose,
        best_effort: args.best_effort,
        no_io_uring: args.no_io_uring,
    };
    via::complain_of_names();
    if let Some(failure) = via::start_under_outer(&launch) {
        return Err(failure);
    }
    if let Some(why) = via::held_by_cgroup(&launch) {
        let _ = writeln!(io::stderr(), "ka: run: {why}");
    }
    if launch.verbose {
        for (client, name) in program.chain().filter_map(|program| Some((program.client?, program.name()))) {
            let _ =
                writeln!(io::stderr(), "ka: {}: {}", text::visible(name.as_encoded_bytes()), client.text());
        }
    }
    // The first way that reaches it; where none does, why each does not, and what the last of them knows instead.
    let mut obstacles: Vec<(&dyn Way, String, String)> = Vec::new();
    for way in via::asked(args.via) {
        match way.reach(&launch) {
            Reach::Yes(how) => {
                // seccomp changes more than preload does. The user may not expect that, so say why ka takes it.
                let missing = via::preload_obstacle();
                for (passed, why, _) in &obstacles {
                    if missing.as_ref() == Some(why) {
                        let _ = writeln!(
                            io::stderr(),
                            "ka: run: {}; reaching the program via {} instead: {how}. {COST}. To avoid this message, \
                             install libka_preload.so, name it in KA_PRELOAD, or use --via {1}",
                            text::visible_lines(why),
                            way.name(),
                        );
                    } else if launch.verbose {
                        let _ = writeln!(io::stderr(), "ka: {} does not reach it: {why}", passed.name());
                    }
                }
                match way.start(&launch)? {}
            }
            Reach::No { why, instead } => obstacles.push((way, why, instead)),
            Reach::Wrong { why, instead } => {
                obstacles = vec![(way, why, instead)];
                break;
            }
        }
    }
    let (Some((way, ..)), Some((.., instead))) = (obstacles.first(), obstacles.last()) else {
        return Err(own(Failure::new("run: there is no such way")));
    };
    let whys: Vec<&str> = obstacles.iter().map(|(_, why, _)| why.as_str()).collect();
    let message = format!("run: {}; use {instead}", whys.join("; "));
    if !args.best_effort {
        return Err(own(Failure::new(message)));
    }
    let _ = writeln!(io::stderr(), "ka: {}; running it WITHOUT keepalive", text::visible_lines(&message));
    // What the program starts in its turn may be reached.
    match way.start(&launch)? {}
}

/// What the flags say, which must be to turn keepalive on. A whole policy says all.
fn said(args: &args::Run) -> Result<Config, Failure> {
    let all = args.policy.config_on()?;
    if args.policy.whole.is_some() { Ok(all) } else { args.policy.said() }
}
