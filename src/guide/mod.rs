//! The guide: the pages of `docs/`, where they can be read on docs.rs and their code runs as tests.
//!
//! | You want to | Read |
//! |---|---|
//! | see how the parts fit | [`tutorial`] |
//! | train by a recipe | [`recipe`], with [`data`] of your own |
//! | know what to choose | [`choosing`], [`which_base`], [`targets`], [`methods`] |
//! | come from PyTorch | [`from_pytorch`] |
//! | put adapters on your own model | [`own_models`], [`several_adapters`] |
//! | load, save, serve | [`file_formats`], [`generation`] |
//! | train faster, or with less memory | [`performance`], [`scaling`] |
//! | leave a run alone overnight | [`reliability`] |
//! | mend what goes wrong | [`troubleshooting`] |
//! | know what is not here | [`limits`] |
//! | change this crate | [`contributing`], [`design`] |

/// A page. The links in its text name files; the definitions in `links.md`, which come first, make modules of them.
macro_rules! pages {
    ($($name:ident: $file:literal $({ $($inner:tt)* })?),* $(,)?) => {
        $(
            #[doc = include_str!("links.md")]
            #[doc = include_str!($file)]
            pub mod $name {
                $(pages! { $($inner)* })?
            }
        )*
    };
}

pages! {
    tutorial: "../../docs/tutorial.md",
    recipe: "../../docs/recipe.md",
    data: "../../docs/data.md",
    choosing: "../../docs/choosing.md",
    which_base: "../../docs/which-base.md",
    targets: "../../docs/targets.md",
    methods: "../../docs/methods/README.md" {
        lora: "../../docs/methods/lora.md",
        rslora: "../../docs/methods/rslora.md",
        dora: "../../docs/methods/dora.md",
        optimizers: "../../docs/methods/optimizers.md",
        first_values: "../../docs/methods/first-values.md",
        biases: "../../docs/methods/biases.md",
        whole_modules: "../../docs/methods/whole-modules.md",
        token_rows: "../../docs/methods/token-rows.md",
    },
    several_adapters: "../../docs/several-adapters.md",
    own_models: "../../docs/own-models.md",
    from_pytorch: "../../docs/from-pytorch.md",
    file_formats: "../../docs/file-formats.md",
    generation: "../../docs/generation.md",
    performance: "../../docs/performance.md",
    scaling: "../../docs/scaling.md",
    reliability: "../../docs/reliability.md",
    troubleshooting: "../../docs/troubleshooting.md",
    limits: "../../docs/limits.md",
    design: "../../docs/design.md",
    contributing: "../../CONTRIBUTING.md",
}
