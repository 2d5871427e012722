//! Settings that may grow: structures with public fields, a constructor, and a method for each field.

/// For each `method => field: Type`, a method that takes the settings and gives them back with another value of the
/// field.
macro_rules! setters {
    ($($method:ident => $field:ident: $type:ty),* $(,)?) => {
        $(
            #[doc = concat!("The same with another [`", stringify!($field), "`](Self::", stringify!($field), ").")]
            pub fn $method(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )*
    };
}
pub(crate) use setters;
