//! The binary: parses the command line, runs the command, ends with its code.

use std::process::ExitCode;

use clap::Parser as _;
use flotte::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run().into()
}
