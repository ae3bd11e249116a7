//! The figures, as a table for people and as JSON.

use std::fmt;

/// What was measured, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(String, f64, &'static str)>,
}

impl Report {
    /// Adds a figure, and says it at once: the run takes minutes.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        eprintln!("{name}: {value:.2} {unit}");
        self.rows.push((name, value, unit));
    }

    /// One object: names to values, units in the names.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let figures = self.rows.iter().map(|(name, value, unit)| {
            (format!("{name} [{unit}]"), serde_json::Value::from((value * 1000.0).round() / 1000.0))
        });
        serde_json::json!({ "schema": 1, "figures": figures.collect::<serde_json::Map<_, _>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| figure | value | unit |")?;
        writeln!(f, "|---|---|---|")?;
        for (name, value, unit) in &self.rows {
            writeln!(f, "| {name} | {value:.2} | {unit} |")?;
        }
        Ok(())
    }
}
