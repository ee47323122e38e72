//! The configuration as text: the commented default file, and the effective values with their origin.

use std::fmt::Write as _;

use super::section::Section as _;
use super::{Availability, Effective, SectionKeys, listener, sections};

/// Every key with what it is for, what is allowed, and its default. Reading it back gives the defaults.
pub fn default_file() -> String {
    let mut out = String::from(
        "# The configuration of a Flotte node, with every key and its default.\n\
         # Flags are stronger than environment variables, those are stronger than this file.\n\
         # The variable of a key is FLOTTE_SECTION__KEY, as FLOTTE_CLUSTER__BIND; lists are separated by commas.\n\
         # Relative paths start from the working directory of the process.\n",
    );
    let mut sections = sections();
    sections.insert(1, SectionKeys::of::<listener::Config>());
    for section in &sections {
        let listener = section.name == listener::Config::NAME;
        let (open, close) = if listener { ("[[", "]]") } else { ("[", "]") };
        out.push('\n');
        push_comment(&mut out, section.about);
        push_line(&mut out, &format!("{open}{}{close}", section.name));
        for key in &section.keys {
            out.push('\n');
            push_comment(&mut out, key.about);
            push_line(&mut out, &format!("# {}", capitalised(&key.allowed)));
            let name = key.name;
            match (key.availability, &key.default) {
                (Availability::Now, Some(default)) => {
                    push_line(&mut out, &format!("{name} = {default}"))
                }
                (Availability::Now, None) => push_line(&mut out, &format!("# {name} =")),
                (Availability::Later, default) => {
                    let default = default
                        .as_ref()
                        .map(|default| format!(" {default}"))
                        .unwrap_or_default();
                    push_line(
                        &mut out,
                        &format!("# {name} ={default} (not available in this version)"),
                    );
                }
            }
        }
    }
    out
}

/// One line a value: `key = value  # origin`.
pub fn effective_values(values: &[Effective]) -> String {
    let line = |value: &Effective| match &value.value {
        Some(shown) => format!("{} = {shown}", value.key),
        None => format!("# {} is unset", value.key),
    };
    let width = values
        .iter()
        .map(|value| line(value).chars().count())
        .max()
        .unwrap_or_default()
        .min(60);
    let mut out = String::new();
    for value in values {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:width$}  # {}", line(value), value.origin);
    }
    out
}

fn push_comment(out: &mut String, lines: &[&str]) {
    for line in lines {
        push_line(out, &format!("# {}", line.trim()));
    }
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}
