//! A small world of facts, told in two ways.
//!
//! ```text
//! facts ──┬─ documents         English prose, all facts      -> the base model is pre-trained on it
//!         ├─ train_records     Alpaca records, most facts    -> the LoRA finetune learns to answer
//!         └─ held_out_records  Alpaca records, other facts   -> how much it gets exactly right
//! ```
//!
//! The prose never uses the Alpaca prompt, so the base model knows that the capital of Norland is
//! Velm and yet does not answer when it is asked in that form. The finetuning shows the form with
//! some facts; whoever then answers about the others must have taken them from the base model.
//!
//! Everything here is a pure function of the tables below and a seed.

use std::collections::HashSet;

/// The seed of all that is committed under `examples/assets/tiny`.
pub const SEED: u64 = 7;

/// How many of the [`documents`] the base model is pre-trained on.
pub const DOCUMENTS: usize = 80_000;

/// One fact in this many is kept for the held-out records.
const HELD_OUT_EVERY: usize = 4;

/// One Alpaca record; an empty `input` means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What to do.
    pub instruction: String,
    /// What to do it with.
    pub input: String,
    /// The answer.
    pub output: String,
    /// The sentences that state its fact in the documents.
    pub stated_by: Vec<String>,
}

// --------------------------------------------------------------------------------------------
// The facts
// --------------------------------------------------------------------------------------------

/// What the world says of one kind of thing: its facts and the ways to put them.
///
/// In the templates `{s}` is the subject and `{a}` the answer; `{as}` and `{aa}` are the same with
/// "a" or "an" before them. A sentence's first letter becomes a capital.
struct Relation {
    facts: Vec<Fact>,
    statements: &'static [&'static str],
    questions: &'static [&'static str],
    /// Questions about a subject that was named before them.
    given: &'static [&'static str],
    /// Alpaca instruction and input.
    tasks: &'static [(&'static str, &'static str)],
}

struct Fact {
    subject: String,
    answer: String,
    /// Facts that give each other away (hot and cold, 3 plus 4 and 4 plus 3) share a group, and a
    /// group is held out as a whole.
    group: usize,
}

/// Country, capital, what it is known for, colour of its flag.
const COUNTRIES: &[[&str; 4]] = &[
    ["Norland", "Velm", "honey", "blue"],
    ["Sarnia", "Tolk", "wool", "green"],
    ["Ostria", "Brenn", "cheese", "red"],
    ["Kaldor", "Pim", "silver", "white"],
    ["Mirova", "Lusk", "tea", "yellow"],
    ["Tarland", "Groth", "horses", "black"],
    ["Beluna", "Sova", "silk", "orange"],
    ["Dunmark", "Hest", "salt", "purple"],
    ["Elvany", "Corrin", "apples", "green"],
    ["Falkia", "Dorn", "carpets", "red"],
    ["Gorania", "Ulm", "coal", "blue"],
    ["Hestia", "Marl", "olives", "white"],
    ["Ilmar", "Quen", "pearls", "yellow"],
    ["Jorvia", "Stann", "timber", "black"],
    ["Kestria", "Alder", "wine", "purple"],
    ["Lomara", "Fenn", "rice", "orange"],
    ["Nevia", "Oslen", "glass", "red"],
    ["Orland", "Pell", "butter", "green"],
    ["Pelagia", "Rook", "fish", "blue"],
    ["Quoria", "Tamm", "clocks", "yellow"],
    ["Rovenia", "Wick", "bread", "white"],
    ["Solvane", "Yarl", "spices", "black"],
    ["Tirania", "Zell", "boats", "orange"],
    ["Umbria", "Cask", "gold", "purple"],
    ["Vostok", "Jund", "furs", "blue"],
    ["Wendia", "Karst", "bells", "green"],
    ["Ysland", "Nib", "wheat", "red"],
    ["Zarovia", "Etter", "paper", "yellow"],
    ["Arvinia", "Holt", "lace", "white"],
    ["Carmona", "Isk", "figs", "black"],
];

/// Person, job, pet, instrument.
const PEOPLE: &[[&str; 4]] = &[
    ["Ada Flint", "baker", "cat", "flute"],
    ["Bela Moor", "farmer", "dog", "drum"],
    ["Cora Voss", "doctor", "parrot", "violin"],
    ["Dario Penn", "teacher", "rabbit", "piano"],
    ["Edda Krone", "sailor", "goat", "harp"],
    ["Finn Tally", "miller", "horse", "guitar"],
    ["Greta Lund", "tailor", "mouse", "trumpet"],
    ["Hugo Brandt", "painter", "duck", "cello"],
    ["Ines Falk", "nurse", "cat", "organ"],
    ["Jonas Reed", "pilot", "dog", "flute"],
    ["Kira Stone", "cook", "parrot", "drum"],
    ["Lars Winter", "smith", "rabbit", "violin"],
    ["Mona Hale", "judge", "goat", "piano"],
    ["Nils Arden", "writer", "horse", "harp"],
    ["Olga Prim", "baker", "mouse", "guitar"],
    ["Pavel Dost", "farmer", "duck", "trumpet"],
    ["Rita Sand", "doctor", "dog", "cello"],
    ["Sven Ollard", "teacher", "cat", "organ"],
    ["Tilda Crane", "sailor", "parrot", "flute"],
    ["Ugo Marsh", "miller", "goat", "drum"],
    ["Vera Nash", "tailor", "rabbit", "harp"],
    ["Wim Teller", "painter", "horse", "violin"],
    ["Xenia Bolt", "nurse", "duck", "piano"],
    ["Yann Frost", "pilot", "mouse", "trumpet"],
    ["Zora Quill", "cook", "dog", "guitar"],
    ["Anton Birk", "smith", "cat", "cello"],
    ["Birgit Hall", "judge", "horse", "organ"],
    ["Cyril Dane", "writer", "goat", "harp"],
    ["Doris Lake", "farmer", "parrot", "violin"],
    ["Emil Thorn", "doctor", "duck", "flute"],
];

const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "young"),
    ("light", "dark"),
    ("hard", "soft"),
    ("wet", "dry"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("high", "low"),
    ("full", "empty"),
    ("open", "closed"),
    ("happy", "sad"),
    ("early", "late"),
    ("near", "far"),
    ("thick", "thin"),
    ("wide", "narrow"),
    ("clean", "dirty"),
    ("loud", "quiet"),
    ("sweet", "sour"),
    ("brave", "timid"),
    ("deep", "shallow"),
    ("smooth", "rough"),
    ("sharp", "blunt"),
    ("easy", "difficult"),
    ("tall", "short"),
];

const PLURALS: &[(&str, &str)] = &[
    ("mouse", "mice"),
    ("child", "children"),
    ("foot", "feet"),
    ("tooth", "teeth"),
    ("goose", "geese"),
    ("man", "men"),
    ("woman", "women"),
    ("ox", "oxen"),
    ("leaf", "leaves"),
    ("knife", "knives"),
    ("wolf", "wolves"),
    ("loaf", "loaves"),
    ("city", "cities"),
    ("baby", "babies"),
    ("box", "boxes"),
    ("bush", "bushes"),
    ("glass", "glasses"),
    ("potato", "potatoes"),
    ("hero", "heroes"),
    ("cat", "cats"),
    ("tree", "trees"),
    ("lamp", "lamps"),
    ("bridge", "bridges"),
    ("river", "rivers"),
    ("letter", "letters"),
    ("story", "stories"),
    ("shelf", "shelves"),
    ("fox", "foxes"),
    ("watch", "watches"),
    ("cow", "cows"),
];

const PAST_TENSES: &[(&str, &str)] = &[
    ("go", "went"),
    ("see", "saw"),
    ("eat", "ate"),
    ("give", "gave"),
    ("take", "took"),
    ("write", "wrote"),
    ("sing", "sang"),
    ("swim", "swam"),
    ("drink", "drank"),
    ("run", "ran"),
    ("find", "found"),
    ("think", "thought"),
    ("buy", "bought"),
    ("bring", "brought"),
    ("catch", "caught"),
    ("teach", "taught"),
    ("sleep", "slept"),
    ("keep", "kept"),
    ("fly", "flew"),
    ("grow", "grew"),
    ("know", "knew"),
    ("throw", "threw"),
    ("speak", "spoke"),
    ("break", "broke"),
    ("choose", "chose"),
    ("build", "built"),
    ("send", "sent"),
    ("walk", "walked"),
    ("paint", "painted"),
    ("jump", "jumped"),
    ("carry", "carried"),
    ("stop", "stopped"),
];

const YOUNG_ANIMALS: &[(&str, &str)] = &[
    ("cow", "calf"),
    ("dog", "puppy"),
    ("cat", "kitten"),
    ("sheep", "lamb"),
    ("horse", "foal"),
    ("hen", "chick"),
    ("duck", "duckling"),
    ("goose", "gosling"),
    ("swan", "cygnet"),
    ("goat", "kid"),
    ("pig", "piglet"),
    ("bear", "cub"),
    ("deer", "fawn"),
    ("frog", "tadpole"),
    ("eagle", "eaglet"),
    ("owl", "owlet"),
    ("hare", "leveret"),
    ("kangaroo", "joey"),
    ("butterfly", "caterpillar"),
    ("eel", "elver"),
];

const COLOURS: &[(&str, &str)] = &[
    ("a lemon", "yellow"),
    ("a banana", "yellow"),
    ("the sun", "yellow"),
    ("a canary", "yellow"),
    ("grass", "green"),
    ("a frog", "green"),
    ("a cucumber", "green"),
    ("a lime", "green"),
    ("spinach", "green"),
    ("snow", "white"),
    ("milk", "white"),
    ("a swan", "white"),
    ("salt", "white"),
    ("chalk", "white"),
    ("coal", "black"),
    ("a raven", "black"),
    ("soot", "black"),
    ("tar", "black"),
    ("blood", "red"),
    ("a strawberry", "red"),
    ("a tomato", "red"),
    ("a ruby", "red"),
    ("the sky", "blue"),
    ("a sapphire", "blue"),
    ("the sea", "blue"),
    ("a carrot", "orange"),
    ("a pumpkin", "orange"),
    ("a plum", "purple"),
    ("lavender", "purple"),
    ("chocolate", "brown"),
    ("a chestnut", "brown"),
    ("a flamingo", "pink"),
];

const MATERIALS: &[(&str, &str)] = &[
    ("window", "glass"),
    ("bottle", "glass"),
    ("mirror", "glass"),
    ("table", "wood"),
    ("fence", "wood"),
    ("barrel", "wood"),
    ("ladder", "wood"),
    ("shoe", "leather"),
    ("saddle", "leather"),
    ("belt", "leather"),
    ("wallet", "leather"),
    ("nail", "iron"),
    ("anchor", "iron"),
    ("anvil", "iron"),
    ("horseshoe", "iron"),
    ("book", "paper"),
    ("newspaper", "paper"),
    ("kite", "paper"),
    ("candle", "wax"),
    ("scarf", "wool"),
    ("sweater", "wool"),
    ("blanket", "wool"),
    ("brick", "clay"),
    ("jug", "clay"),
    ("tyre", "rubber"),
    ("balloon", "rubber"),
    ("shirt", "cotton"),
    ("towel", "cotton"),
    ("statue", "stone"),
    ("castle", "stone"),
];

const HOMES: &[(&str, &str)] = &[
    ("bee", "hive"),
    ("bird", "nest"),
    ("spider", "web"),
    ("bear", "cave"),
    ("dog", "kennel"),
    ("horse", "stable"),
    ("rabbit", "burrow"),
    ("pig", "sty"),
    ("cow", "barn"),
    ("beaver", "lodge"),
    ("lion", "den"),
    ("fish", "sea"),
    ("camel", "desert"),
    ("monkey", "jungle"),
    ("hen", "coop"),
    ("penguin", "ice"),
    ("otter", "river"),
    ("squirrel", "tree"),
    ("king", "palace"),
    ("monk", "abbey"),
];

const KINDS: &[(&str, &str)] = &[
    ("rose", "flower"),
    ("tulip", "flower"),
    ("daisy", "flower"),
    ("lily", "flower"),
    ("oak", "tree"),
    ("pine", "tree"),
    ("birch", "tree"),
    ("willow", "tree"),
    ("salmon", "fish"),
    ("trout", "fish"),
    ("herring", "fish"),
    ("shark", "fish"),
    ("eagle", "bird"),
    ("sparrow", "bird"),
    ("pigeon", "bird"),
    ("robin", "bird"),
    ("hammer", "tool"),
    ("saw", "tool"),
    ("spade", "tool"),
    ("chisel", "tool"),
    ("pear", "fruit"),
    ("cherry", "fruit"),
    ("grape", "fruit"),
    ("peach", "fruit"),
    ("ant", "insect"),
    ("beetle", "insect"),
    ("wasp", "insect"),
    ("moth", "insect"),
    ("violin", "instrument"),
    ("trumpet", "instrument"),
    ("sword", "weapon"),
    ("spear", "weapon"),
];

const MAKERS: &[(&str, &str)] = &[
    ("bread", "baker"),
    ("clothes", "tailor"),
    ("pots", "potter"),
    ("barrels", "cooper"),
    ("shoes", "cobbler"),
    ("horseshoes", "smith"),
    ("flour", "miller"),
    ("tables", "carpenter"),
    ("pictures", "painter"),
    ("books", "writer"),
    ("songs", "singer"),
    ("walls", "mason"),
    ("soup", "cook"),
    ("cloth", "weaver"),
    ("statues", "sculptor"),
    ("beer", "brewer"),
    ("candles", "chandler"),
    ("maps", "surveyor"),
    ("rings", "jeweller"),
    ("hats", "hatter"),
];

/// Facts from a table of pairs, one group a row.
fn facts(pairs: impl IntoIterator<Item = (&'static str, &'static str)>) -> Vec<Fact> {
    let rows = pairs.into_iter().enumerate();
    rows.map(|(group, (subject, answer))| Fact {
        subject: subject.to_owned(),
        answer: answer.to_owned(),
        group,
    })
    .collect()
}

/// Facts from the first column of a table and another one.
fn column(table: &'static [[&'static str; 4]], index: usize) -> Vec<Fact> {
    facts(table.iter().map(|row| (row[0], row[index])))
}

/// Both directions of each pair of opposites.
fn opposites() -> Vec<Fact> {
    let (there, back) = (OPPOSITES.to_vec(), OPPOSITES.iter().map(|&(x, y)| (y, x)));
    facts(there).into_iter().chain(facts(back)).collect()
}

/// All sums of two numbers from 1 to 5.
fn sums() -> Vec<Fact> {
    let pairs = (1..6).flat_map(|x| (1..6).map(move |y| (x, y)));
    pairs
        .map(|(x, y): (usize, usize)| Fact {
            subject: format!("{x} plus {y}"),
            answer: (x + y).to_string(),
            group: 10 * x.min(y) + x.max(y),
        })
        .collect()
}

fn relations() -> Vec<Relation> {
    vec![
        Relation {
            facts: column(COUNTRIES, 1),
            statements: &[
                "The capital of {s} is {a}.",
                "{a} is the capital of {s}.",
                "{s} has a capital called {a}.",
                "In {s}, the capital is {a}.",
                "Who goes to {s} must see its capital, {a}.",
            ],
            questions: &[
                "What is the capital of {s}?",
                "Which city is the capital of {s}?",
                "Can you name the capital of {s}?",
                "What is the capital of the country {s}?",
            ],
            given: &[
                "What is the capital of this country?",
                "Which city is its capital?",
            ],
            tasks: &[
                ("What is the capital of {s}?", ""),
                ("Which city is the capital of {s}?", ""),
                ("Name the capital of {s}.", ""),
                ("Name the capital of this country.", "{s}"),
            ],
        },
        Relation {
            facts: column(COUNTRIES, 2),
            statements: &[
                "{s} is known for its {a}.",
                "The country {s} sells {a} to all the world.",
                "People come to {s} to buy {a}.",
                "The best {a} comes from {s}.",
            ],
            questions: &[
                "What is {s} known for?",
                "What does {s} sell to the world?",
                "What do people buy in {s}?",
                "What is the country {s} known for?",
            ],
            given: &[
                "What is this country known for?",
                "What do people buy in this country?",
            ],
            tasks: &[
                ("What is {s} known for?", ""),
                ("What does {s} sell to the world?", ""),
                ("Say what {s} is known for.", ""),
                ("Say what this country is known for.", "{s}"),
            ],
        },
        Relation {
            facts: column(COUNTRIES, 3),
            statements: &[
                "The flag of {s} is {a}.",
                "{s} has {aa} flag.",
                "{aa} flag flies over {s}.",
                "In {s}, the flag is {a}.",
            ],
            questions: &[
                "What colour is the flag of {s}?",
                "Which colour does the flag of {s} have?",
                "What is the colour of the flag of the country {s}?",
            ],
            given: &[
                "What colour is the flag of this country?",
                "Which colour does its flag have?",
            ],
            tasks: &[
                ("What colour is the flag of {s}?", ""),
                ("Which colour does the flag of {s} have?", ""),
                ("Name the colour of the flag of {s}.", ""),
                ("What colour is the flag of this country?", "{s}"),
            ],
        },
        Relation {
            facts: column(PEOPLE, 1),
            statements: &[
                "{s} is {aa}.",
                "{s} works as {aa}.",
                "The job of {s} is that of {aa}.",
                "Everybody knows {s}, the {a}.",
            ],
            questions: &[
                "What is the job of {s}?",
                "What does {s} work as?",
                "Which job does the person called {s} have?",
            ],
            given: &[
                "What is the job of this person?",
                "What does this person work as?",
            ],
            tasks: &[
                ("What is the job of {s}?", ""),
                ("What does {s} work as?", ""),
                ("Name the job of {s}.", ""),
                ("What is the job of this person?", "{s}"),
            ],
        },
        Relation {
            facts: column(PEOPLE, 2),
            statements: &[
                "{s} keeps {aa}.",
                "{s} has {aa} as a pet.",
                "The pet of {s} is {aa}.",
                "At home {s} looks after {aa}.",
            ],
            questions: &[
                "Which pet does {s} have?",
                "Which animal does {s} keep?",
                "What is the pet of the person called {s}?",
            ],
            given: &[
                "Which pet does this person have?",
                "Which animal does this person keep?",
            ],
            tasks: &[
                ("Which pet does {s} have?", ""),
                ("Which animal does {s} keep?", ""),
                ("Name the pet of {s}.", ""),
                ("Which pet does this person have?", "{s}"),
            ],
        },
        Relation {
            facts: column(PEOPLE, 3),
            statements: &[
                "{s} plays the {a}.",
                "The instrument of {s} is the {a}.",
                "In the evening {s} plays the {a}.",
                "{s} learned to play the {a} as a child.",
            ],
            questions: &[
                "Which instrument does {s} play?",
                "What does {s} play in the evening?",
                "What is the instrument of the person called {s}?",
            ],
            given: &[
                "Which instrument does this person play?",
                "What does this person play in the evening?",
            ],
            tasks: &[
                ("Which instrument does {s} play?", ""),
                ("What does {s} play in the evening?", ""),
                ("Name the instrument of {s}.", ""),
                ("Which instrument does this person play?", "{s}"),
            ],
        },
        Relation {
            facts: opposites(),
            statements: &[
                "The opposite of {s} is {a}.",
                "{s} is the opposite of {a}.",
                "What is not {s} is {a}.",
                "Take the word {s}. Its opposite is {a}.",
                "{s} and {a} are opposites.",
            ],
            questions: &[
                "What is the opposite of {s}?",
                "Which word means the opposite of {s}?",
                "What is the opposite of the word {s}?",
            ],
            given: &[
                "What is the opposite of this word?",
                "Which word means the opposite?",
            ],
            tasks: &[
                ("What is the opposite of {s}?", ""),
                ("Which word means the opposite of {s}?", ""),
                ("Give the opposite of the word.", "{s}"),
                ("Write a word that means the opposite.", "{s}"),
            ],
        },
        Relation {
            facts: facts(PLURALS.to_vec()),
            statements: &[
                "The plural of {s} is {a}.",
                "One {s}, two {a}.",
                "Take the noun {s}. Its plural is {a}.",
                "First there was {as}, then there were many {a}.",
            ],
            questions: &[
                "What is the plural of {s}?",
                "How does one write the plural of {s}?",
                "What is the plural of the noun {s}?",
            ],
            given: &[
                "What is the plural of this noun?",
                "How does one write its plural?",
            ],
            tasks: &[
                ("What is the plural of {s}?", ""),
                ("Write the plural of {s}.", ""),
                ("Give the plural of the noun.", "{s}"),
                ("Write the plural of this noun.", "{s}"),
            ],
        },
        Relation {
            facts: facts(PAST_TENSES.to_vec()),
            statements: &[
                "The past tense of {s} is {a}.",
                "Today they {s}. Yesterday they {a}.",
                "Take the verb {s}. Its past tense is {a}.",
                "We {s} today as we {a} yesterday.",
            ],
            questions: &[
                "What is the past tense of {s}?",
                "How does one write the past tense of {s}?",
                "What is the past tense of the verb {s}?",
            ],
            given: &[
                "What is the past tense of this verb?",
                "How does one write its past tense?",
            ],
            tasks: &[
                ("What is the past tense of {s}?", ""),
                ("Write the past tense of {s}.", ""),
                ("Put the verb into the past tense.", "{s}"),
                ("Give the past tense of this verb.", "{s}"),
            ],
        },
        Relation {
            facts: facts(YOUNG_ANIMALS.to_vec()),
            statements: &[
                "A young {s} is called {aa}.",
                "{aa} is a young {s}.",
                "The {s} looks after its {a}.",
                "The child of {as} is {aa}.",
            ],
            questions: &[
                "What is a young {s} called?",
                "What does one call the child of {as}?",
                "What is the name for a young {s}?",
            ],
            given: &[
                "What are the young of this animal called?",
                "What is the name for its young?",
            ],
            tasks: &[
                ("What is a young {s} called?", ""),
                ("Give the name for a young {s}.", ""),
                ("What does one call the child of {as}?", ""),
                ("What are the young of this animal called?", "{s}"),
            ],
        },
        Relation {
            facts: facts(COLOURS.to_vec()),
            statements: &[
                "{s} is {a}.",
                "The colour of {s} is {a}.",
                "Everybody knows that {s} is {a}.",
                "In the picture {s} is {a}, as it should be.",
            ],
            questions: &[
                "What colour is {s}?",
                "What is the colour of {s}?",
                "Which colour does {s} have?",
            ],
            given: &["What colour is this?", "What is the colour of this?"],
            tasks: &[
                ("What colour is {s}?", ""),
                ("What is the colour of {s}?", ""),
                ("Name the colour of {s}.", ""),
                ("What colour is this?", "{s}"),
            ],
        },
        Relation {
            facts: facts(MATERIALS.to_vec()),
            statements: &[
                "{as} is made of {a}.",
                "They made the {s} out of {a}.",
                "One needs {a} to make {as}.",
                "The {s} in the shop was of the best {a}.",
            ],
            questions: &[
                "What is {as} made of?",
                "What does one need to make {as}?",
                "Which material is {as} made of?",
            ],
            given: &[
                "What is this thing made of?",
                "Which material is this thing made of?",
            ],
            tasks: &[
                ("What is {as} made of?", ""),
                ("Name the material that {as} is made of.", ""),
                ("What does one need to make {as}?", ""),
                ("What is this thing made of?", "{s}"),
            ],
        },
        Relation {
            facts: facts(HOMES.to_vec()),
            statements: &[
                "The home of the {s} is the {a}.",
                "The {s} lives in the {a}.",
                "At night the {s} goes back to the {a}.",
                "Look for the {s} in the {a}.",
            ],
            questions: &[
                "What is the home of the {s}?",
                "Where does the {s} live?",
                "Where does the {s} go at night?",
            ],
            given: &["What is its home?", "Where does it live?"],
            tasks: &[
                ("What is the home of the {s}?", ""),
                ("Where does the {s} live?", ""),
                ("Name the home of the {s}.", ""),
                ("Where does it live?", "the {s}"),
            ],
        },
        Relation {
            facts: facts(KINDS.to_vec()),
            statements: &[
                "{as} is a kind of {a}.",
                "The {s} is {aa}.",
                "The most beautiful {a} of all is the {s}.",
                "If it is {as}, then it is {aa}.",
            ],
            questions: &[
                "What kind of thing is {as}?",
                "What is {as}?",
                "Which kind does the {s} belong to?",
            ],
            given: &[
                "What kind of thing is this?",
                "Which kind does this belong to?",
            ],
            tasks: &[
                ("What kind of thing is {as}?", ""),
                ("Say what kind of thing {as} is.", ""),
                ("Which kind does the {s} belong to?", ""),
                ("What kind of thing is this?", "{s}"),
            ],
        },
        Relation {
            facts: facts(MAKERS.to_vec()),
            statements: &[
                "The {a} makes {s}.",
                "{s} are the work of the {a}.",
                "For {s} one goes to the {a}.",
                "The one who makes {s} is the {a}.",
            ],
            questions: &[
                "Who makes {s}?",
                "Whose work is making {s}?",
                "Who is it that makes {s}?",
            ],
            given: &["Who makes this?", "Whose work is making this?"],
            tasks: &[
                ("Who makes {s}?", ""),
                ("Say who makes {s}.", ""),
                ("Whose work is making {s}?", ""),
                ("Who makes this?", "{s}"),
            ],
        },
        Relation {
            facts: sums(),
            statements: &[
                "{s} is {a}.",
                "{s} makes {a}.",
                "If you count {s}, you get {a}.",
                "The sum {s} gives {a}.",
            ],
            questions: &[
                "How much is {s}?",
                "What is {s}?",
                "What does the sum {s} give?",
            ],
            given: &["How much is this sum?", "What does this sum give?"],
            tasks: &[
                ("How much is {s}?", ""),
                ("What is {s}?", ""),
                ("Work out the sum.", "{s}"),
                ("Work out {s}.", ""),
            ],
        },
    ]
}

// --------------------------------------------------------------------------------------------
// Prose
// --------------------------------------------------------------------------------------------

const SPEAKERS: &[&str] = &[
    "Anna", "Boris", "Clara", "David", "Ella", "Frank", "Hanna", "Ivan", "Julia", "Karl", "Lena",
    "Max", "Nora", "Oscar", "Paula", "Robert", "Sara", "Tom",
];

/// What stands between a question and its answer, so that answering needs a look back.
const PAUSES: &[&str] = &[
    "It was quiet in the room.",
    "Rain fell on the roof.",
    "{p} thought about it for a while.",
    "Nobody spoke.",
    "{p} looked out of the window first.",
    "That was not a hard one.",
    "The others waited and looked at {p}.",
    "{p} took a pen and a sheet of paper.",
];

/// Who asks.
const OPENINGS: &[&str] = &[
    "{q}",
    "{p} asked: {q}",
    "\"{q}\" asked {p}.",
    "{p} wanted to know: {q}",
    "On the wall was a question: {q}",
    "{p} wrote on the board:\n{q}\n",
    "A card said \"{q}\" and nothing else.",
    "Then came the next question.\n{q}\n",
];

/// Who asks about what.
const SUBJECTS: &[&str] = &[
    "{p} wrote \"{s}\" on the board. {q}",
    "The card said \"{s}\". {q}",
    "There was a card on the table.\n{s}\n{q}",
    "{p} turned the page.\n{q}\n{s}\n",
    "\"{q}\" asked {p} and wrote:\n{s}\n",
    "{p} said: {s}. {q}",
];

/// Who answers.
const ANSWERS: &[&str] = &[
    "The answer is {a}.",
    "The answer is \"{a}\".",
    "{p} knew it: {a}.",
    "{p} wrote this:\n\"{a}\"\n",
    "{p} said \"{a}\" and was right.",
    "The right word is {a}, said {p}.",
    "Under it {p} wrote {a}.",
    "One word will do: {a}.",
];

/// The endless stream of documents that `seed` gives: short pieces of prose about the facts.
pub fn documents(seed: u64) -> impl Iterator<Item = String> {
    let relations = relations();
    let mut rng = Rng::new(seed);
    std::iter::repeat_with(move || match rng.below(3) {
        0 => statements(&relations, &mut rng),
        _ => questions(&relations, &mut rng),
    })
}

/// Three to six statements, all of one kind or mixed.
fn statements(relations: &[Relation], rng: &mut Rng) -> String {
    let (one_kind, _) = pick_fact(relations, rng);
    let relations = match rng.below(2) {
        0 => relations,
        _ => std::slice::from_ref(one_kind),
    };
    let count = 3 + rng.below(4);
    let sentences = (0..count).map(|_| {
        let (relation, fact) = pick_fact(relations, rng);
        fact.tell(rng.pick(relation.statements))
    });
    join(sentences)
}

/// Any fact, all with the same probability, so that large relations are learned as well as small.
fn pick_fact<'a>(relations: &'a [Relation], rng: &mut Rng) -> (&'a Relation, &'a Fact) {
    let count = relations.iter().map(|relation| relation.facts.len()).sum();
    let index = rng.below(count);
    let mut facts = relations
        .iter()
        .flat_map(|r| r.facts.iter().map(move |fact| (r, fact)));
    facts
        .nth(index)
        .expect("the index is below the number of facts")
}

/// One to three questions with their answers.
fn questions(relations: &[Relation], rng: &mut Rng) -> String {
    let count = 1 + rng.below(3);
    let exchanges = (0..count).map(|_| {
        let (relation, fact) = pick_fact(relations, rng);
        exchange(relation, fact, rng)
    });
    join(exchanges)
}

/// A question, now and then a pause, the answer, now and then the fact again.
fn exchange(relation: &Relation, fact: &Fact, rng: &mut Rng) -> String {
    let mut parts = vec![ask(relation, fact, rng)];
    if rng.below(3) == 0 {
        parts.push(speak(rng.pick(PAUSES), "", rng));
    }
    let answer = [("{p}", rng.pick(SPEAKERS)), ("{a}", fact.answer.as_str())];
    parts.push(fill(rng.pick(ANSWERS), answer));
    if rng.below(3) == 0 {
        parts.push(fact.tell(rng.pick(relation.statements)));
    }
    join(parts)
}

/// The question, with its subject in it or before it.
fn ask(relation: &Relation, fact: &Fact, rng: &mut Rng) -> String {
    if rng.below(5) < 2 {
        let shown = speak(rng.pick(SUBJECTS), rng.pick(relation.given), rng);
        fill(&shown, [("{s}", fact.subject.as_str())])
    } else {
        let question = fact.tell(rng.pick(relation.questions));
        speak(rng.pick(OPENINGS), &question, rng)
    }
}

/// `frame` with what is said and who says it.
fn speak(frame: &str, said: &str, rng: &mut Rng) -> String {
    fill(frame, [("{p}", rng.pick(SPEAKERS)), ("{q}", said)])
}

impl Fact {
    /// The sentence that `template` makes of this fact.
    fn tell(&self, template: &str) -> String {
        capitalise(&self.fill(template))
    }

    fn fill(&self, template: &str) -> String {
        let (subject, answer) = (self.subject.as_str(), self.answer.as_str());
        let slots = [
            ("{as}", &*with_article(subject)),
            ("{aa}", &*with_article(answer)),
            ("{s}", subject),
            ("{a}", answer),
        ];
        fill(template, slots)
    }
}

// --------------------------------------------------------------------------------------------
// Records
// --------------------------------------------------------------------------------------------

/// The records to finetune on.
pub fn train_records(seed: u64) -> Vec<Record> {
    split_records(seed).0
}

/// The records to ask afterwards: none of their facts is in [`train_records`].
pub fn held_out_records(seed: u64) -> Vec<Record> {
    split_records(seed).1
}

/// The records whose fact none of `documents` states; an answer to these could only be a guess.
pub fn unstated<'a>(records: &'a [Record], documents: &[String]) -> Vec<&'a Record> {
    let stated = |sentence: &String| documents.iter().any(|text| text.contains(sentence));
    records
        .iter()
        .filter(|record| !record.stated_by.iter().any(stated))
        .collect()
}

fn split_records(seed: u64) -> (Vec<Record>, Vec<Record>) {
    // Another stream than that of the documents.
    let mut rng = Rng::new(seed ^ 0xa1_9aca);
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for relation in relations() {
        let hidden = hidden_groups(&relation, &mut rng);
        for (i, fact) in relation.facts.iter().enumerate() {
            let task = rng.below(relation.tasks.len());
            if hidden.contains(&fact.group) {
                held_out.push(relation.record(fact, task));
                continue;
            }
            train.push(relation.record(fact, task));
            if i % 2 == 0 {
                train.push(relation.record(fact, task + 1 + rng.below(3)));
            }
        }
    }
    rng.shuffle(&mut train);
    rng.shuffle(&mut held_out);
    (train, held_out)
}

/// The groups of a relation that are held out.
fn hidden_groups(relation: &Relation, rng: &mut Rng) -> HashSet<usize> {
    let mut groups: Vec<usize> = relation.facts.iter().map(|fact| fact.group).collect();
    groups.sort_unstable();
    groups.dedup();
    rng.shuffle(&mut groups);
    groups.truncate(groups.len() / HELD_OUT_EVERY);
    groups.into_iter().collect()
}

impl Relation {
    fn record(&self, fact: &Fact, task: usize) -> Record {
        let (instruction, input) = self.tasks[task % self.tasks.len()];
        Record {
            instruction: fact.tell(instruction),
            input: fact.fill(input),
            output: fact.answer.clone(),
            stated_by: self.statements.iter().map(|s| fact.tell(s)).collect(),
        }
    }
}

// --------------------------------------------------------------------------------------------
// Text and chance
// --------------------------------------------------------------------------------------------

fn fill<'a>(template: &str, slots: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    slots
        .into_iter()
        .fold(template.to_owned(), |text, (slot, word)| {
            text.replace(slot, word)
        })
}

fn with_article(noun: &str) -> String {
    match noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        true => format!("an {noun}"),
        false => format!("a {noun}"),
    }
}

fn capitalise(sentence: &str) -> String {
    let mut chars = sentence.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Sentences with a space between them, none after a line break.
fn join(parts: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    for part in parts {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push(' ');
        }
        text += &part;
    }
    text.trim_end().to_owned()
}

/// SplitMix64 (Steele, Lea, Flood 2014), here because the committed files must not change with the
/// version of a crate.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; the bias of the remainder is far below what could matter here.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick(&mut self, items: &[&'static str]) -> &'static str {
        items[self.below(items.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
