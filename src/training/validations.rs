use serde::{Deserialize, Deserializer, Serialize};

/// The validations of a training so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Validations {
    /// The last one.
    pub last: Option<Validation>,
    /// That with the lowest loss, the first of them if they are several.
    pub best: Option<Validation>,
    /// How many have come after it.
    pub since_best: usize,
}

/// The loss over the validation set after a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// The steps done.
    pub step: usize,
    /// The mean loss over all labelled tokens.
    #[serde(deserialize_with = "nan_for_null")]
    pub loss: f64,
}

/// JSON has no number for a loss that is none.
pub(super) fn nan_for_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let loss = Option::<f64>::deserialize(deserializer)?;
    Ok(loss.unwrap_or(f64::NAN))
}

impl Validations {
    /// Takes note of one. Whether it is the best so far, which one whose loss is no number never is.
    pub fn add(&mut self, step: usize, loss: f64) -> bool {
        let validation = Validation { step, loss };
        self.last = Some(validation);
        let is_best = match self.best {
            Some(best) => loss < best.loss,
            None => loss.is_finite(),
        };
        if is_best {
            self.best = self.last;
            self.since_best = 0;
        } else {
            self.since_best += 1;
        }
        is_best
    }

    /// Whether so many have come since the best one that a training with this patience ends (early stopping).
    pub fn have_ended(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.since_best >= patience)
    }

    /// Whether the last one was after this step.
    pub fn has(&self, step: usize) -> bool {
        self.last.is_some_and(|last| last.step == step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_lowest_and_patience_counts_from_there() {
        let mut validations = Validations::default();
        let losses = [f64::NAN, 3.0, 2.0, 2.0, f64::NAN, 1.5, 1.6, f64::INFINITY];
        let best = [false, true, true, false, false, true, false, false];
        let ended = [false, false, false, false, true, false, false, true];
        for (step, loss) in losses.into_iter().enumerate() {
            assert_eq!(validations.add(step, loss), best[step], "{step}");
            assert_eq!(validations.have_ended(Some(2)), ended[step], "{step}");
            assert!(!validations.have_ended(None));
            assert!(validations.has(step) && !validations.has(step + 1));
        }
        let expected = Validation { step: 5, loss: 1.5 };
        assert_eq!(validations.best, Some(expected));
    }

    #[test]
    fn it_is_the_same_from_a_file() {
        let mut validations = Validations::default();
        validations.add(3, 1.25);
        let again = |validations: &Validations| {
            let text = serde_json::to_string(validations).unwrap();
            serde_json::from_str::<Validations>(&text).unwrap()
        };
        assert_eq!(again(&validations), validations);
        validations.add(6, f64::NAN);
        let read = again(&validations);
        assert_eq!((read.best, read.since_best), (validations.best, 1));
        assert!(read.has(6) && read.last.unwrap().loss.is_nan());
    }
}
