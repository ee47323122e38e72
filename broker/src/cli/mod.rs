//! The command line: `flotte serve | dev | pub | sub | passwd | config | ctl`. Each command is a module that parses its
//! arguments, does its work and ends with an [`Exit`].

mod client;
mod config;
pub mod ctl;
mod dev;
mod exit;
mod output;
mod passwd;
mod serve;

use std::io;

use clap::{Parser, Subcommand};

pub use exit::{Exit, Failure};
pub(crate) use output::tell;

/// A clustered MQTT broker for fleets of devices.
#[derive(Debug, Parser)]
#[command(name = "flotte", version, about, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node: a cluster of one until others join.
    Serve(serve::Arguments),
    /// Run a cluster on this machine, on one console; Ctrl-C stops all of it.
    Dev(dev::Arguments),
    /// Publish messages.
    Pub(client::PubArguments),
    /// Subscribe to topics and print what comes.
    Sub(client::SubArguments),
    /// Add, change or delete a user of a password file.
    Passwd(passwd::Arguments),
    /// Check, show or write a configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// Ask a running node, or change something there.
    Ctl(ctl::Arguments),
}

impl Cli {
    /// Runs the command and tells what went wrong.
    pub fn run(self) -> Exit {
        match self.command {
            Command::Serve(arguments) => arguments.run(),
            Command::Dev(arguments) => reported(arguments.run()),
            Command::Pub(arguments) => reported(arguments.run()),
            Command::Sub(arguments) => reported(arguments.run()),
            Command::Passwd(arguments) => reported(arguments.run()),
            Command::Config(command) => command.run(),
            Command::Ctl(arguments) => reported(arguments.run()),
        }
    }
}

fn reported(result: Result<Exit, impl Failure>) -> Exit {
    result.unwrap_or_else(|failure| {
        output::tell(format_args!("flotte: {failure}"));
        failure.exit()
    })
}

/// What a command ends with after it wrote its result.
fn written(result: io::Result<()>) -> Exit {
    match result {
        Ok(()) => Exit::Done,
        // `flotte ... | head` is not a failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            output::tell(format_args!("flotte: cannot write the result: {error}"));
            Exit::DiskFailed
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_there() {
        let names: Vec<String> = Cli::command()
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect();
        assert_eq!(
            names,
            ["serve", "dev", "pub", "sub", "passwd", "config", "ctl"]
        );
    }

    #[test]
    fn bad_usage_ends_with_2() {
        for line in [
            "flotte",
            "flotte swerve",
            "flotte serve --bind x",
            "flotte pub -t a",
            "flotte sub",
            "flotte dev --nodes 6",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert_eq!(
            Cli::try_parse_from(["flotte", "--help"])
                .unwrap_err()
                .exit_code(),
            0
        );
    }
}
