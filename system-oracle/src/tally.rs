//! What was compared, and what came of it: printed at the end of a run.

use std::collections::BTreeMap;
use std::fmt;

use crate::machine::Outcome;

/// Counts of cases.
#[derive(Default)]
pub struct Tally {
    /// By instruction: compared and, among them, those that were carried out.
    compared: BTreeMap<&'static str, Row>,
    /// By reason.
    excluded: BTreeMap<&'static str, u64>,
    /// By detail that was overlooked.
    forgiven: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Row {
    cases: u64,
    done: u64,
    excluded: u64,
    /// By vector.
    raised: BTreeMap<u8, u64>,
}

impl Tally {
    /// A case was compared, and these details overlooked.
    pub fn compared(&mut self, name: &'static str, outcome: Outcome, forgiven: &[&'static str]) {
        for detail in forgiven {
            *self.forgiven.entry(detail).or_default() += 1;
        }
        let row = self.compared.entry(name).or_default();
        row.cases += 1;
        match outcome {
            Outcome::Exception { vector, .. } => *row.raised.entry(vector).or_default() += 1,
            _ => row.done += 1,
        }
    }

    /// A case wasn't compared, for this reason.
    pub fn excluded(&mut self, name: &'static str, reason: &'static str) {
        self.compared.entry(name).or_default().excluded += 1;
        *self.excluded.entry(reason).or_default() += 1;
    }

    /// How many cases were compared.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.compared.values().map(|row| row.cases).sum()
    }

    /// The instructions of which no case was carried out, and those of which none was compared.
    #[must_use]
    pub fn never_done(&self) -> Vec<&'static str> {
        self.compared.iter().filter(|(_, row)| row.done == 0).map(|(&name, _)| name).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>9}{:>10}{:>10}  exceptions",
            "instruction", "compared", "done", "excluded"
        )?;
        for (name, row) in &self.compared {
            write!(f, "{name:<24}{:>9}{:>10}{:>10} ", row.cases, row.done, row.excluded)?;
            for (vector, count) in &row.raised {
                write!(f, " {}: {count}", exception(*vector))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "compared: {} cases; excluded:", self.total())?;
        for (reason, count) in &self.excluded {
            writeln!(f, "{count:>9}  {reason}")?;
        }
        writeln!(f, "compared but for a detail:")?;
        for (detail, count) in &self.forgiven {
            writeln!(f, "{count:>9}  {detail}")?;
        }
        Ok(())
    }
}

/// The manual's name of an exception.
fn exception(vector: u8) -> String {
    let known = [
        (0, "DE"),
        (1, "DB"),
        (3, "BP"),
        (4, "OF"),
        (5, "BR"),
        (6, "UD"),
        (7, "NM"),
        (8, "DF"),
        (10, "TS"),
        (11, "NP"),
        (12, "SS"),
        (13, "GP"),
        (14, "PF"),
        (16, "MF"),
        (17, "AC"),
        (18, "MC"),
        (19, "XM"),
    ];
    let found = known.iter().find(|(number, _)| *number == vector);
    found.map_or_else(|| vector.to_string(), |(_, name)| format!("#{name}"))
}
