//! Which adapter each row of a batch takes.

use burn::tensor::{Device, Int, Tensor};

/// The adapter of each row of a batch, by name; a row without one takes the base.
///
/// A layer that has no adapter of a row's name takes the base for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    rows: Vec<Option<String>>,
    groups: Vec<Group>,
}

/// The rows of one adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: Option<String>,
    rows: Vec<i32>,
}

/// What rows can be taken from and put together again.
pub(crate) trait Rows: Sized {
    fn select_rows(self, rows: Tensor<1, Int>) -> Self;
    fn narrow_rows(self, start: usize, len: usize) -> Self;
    fn num_rows(&self) -> usize;
    fn rows_device(&self) -> Device;
}

impl<const D: usize> Rows for Tensor<D> {
    fn select_rows(self, rows: Tensor<1, Int>) -> Self {
        self.select(0, rows)
    }

    fn narrow_rows(self, start: usize, len: usize) -> Self {
        self.narrow(0, start, len)
    }

    fn num_rows(&self) -> usize {
        self.dims()[0]
    }

    fn rows_device(&self) -> Device {
        self.device()
    }
}

impl<const D: usize> Rows for Tensor<D, Int> {
    fn select_rows(self, rows: Tensor<1, Int>) -> Self {
        self.select(0, rows)
    }

    fn narrow_rows(self, start: usize, len: usize) -> Self {
        self.narrow(0, start, len)
    }

    fn num_rows(&self) -> usize {
        self.dims()[0]
    }

    fn rows_device(&self) -> Device {
        self.device()
    }
}

impl Routes {
    /// One name, or none, a row.
    ///
    /// ```
    /// use burn_peft::lora::Routes;
    ///
    /// let routes = Routes::new([Some("french"), None, Some("french")]);
    /// assert_eq!(routes.num_rows(), 3);
    /// ```
    pub fn new<S: Into<String>>(rows: impl IntoIterator<Item = Option<S>>) -> Self {
        let rows: Vec<Option<String>> = rows.into_iter().map(|row| row.map(Into::into)).collect();
        let mut groups: Vec<Group> = Vec::new();
        for (index, name) in (0..).zip(&rows) {
            match groups.iter_mut().find(|group| group.name == *name) {
                Some(group) => group.rows.push(index),
                None => groups.push(Group {
                    name: name.clone(),
                    rows: vec![index],
                }),
            }
        }
        Self { rows, groups }
    }

    /// The number of rows.
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// The routes of other rows, each of which is one of these.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn of_rows(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        Self::new(rows.into_iter().map(|row| self.rows[row].clone()))
    }

    /// Applies `f` to the rows of each adapter and puts the results into the rows' order.
    ///
    /// # Panics
    /// If `x` has another number of rows.
    pub(crate) fn apply<X: Rows + Clone, const D: usize>(
        &self,
        x: X,
        f: impl Fn(Option<&str>, X) -> Tensor<D>,
    ) -> Tensor<D> {
        assert_eq!(
            x.num_rows(),
            self.num_rows(),
            "a batch has as many rows as its routes"
        );
        if let [group] = &self.groups[..] {
            return f(group.name.as_deref(), x);
        }
        let device = x.rows_device();
        let parts: Vec<_> = self
            .groups
            .iter()
            .map(|group| {
                let name = group.name.as_deref();
                match group.is_contiguous() {
                    true => {
                        let start = group.rows[0] as usize;
                        f(name, x.clone().narrow_rows(start, group.rows.len()))
                    }
                    false => {
                        let rows = Tensor::from_ints(&group.rows[..], &device);
                        f(name, x.clone().select_rows(rows))
                    }
                }
            })
            .collect();
        let joined = Tensor::cat(parts, 0);
        match self.groups.iter().all(Group::is_contiguous) {
            true => joined,
            false => joined.select(0, self.places(&device)),
        }
    }

    /// Where each row lies when the groups follow each other.
    fn places(&self, device: &Device) -> Tensor<1, Int> {
        let mut places = vec![0; self.rows.len()];
        let order = self.groups.iter().flat_map(|group| &group.rows);
        for (place, row) in (0..).zip(order) {
            places[*row as usize] = place;
        }
        Tensor::from_ints(&places[..], device)
    }
}

impl Group {
    /// Groups are in the order of their first rows: if all are contiguous, together they are in order.
    fn is_contiguous(&self) -> bool {
        let first = self.rows[0];
        (first..)
            .zip(&self.rows)
            .all(|(expected, row)| expected == *row)
    }
}
