//! Builds, imports and pulls images from the command line, to try the library without the rest of the program:
//! `image DIR list`, `image DIR build RECIPE`, `image DIR import FILE`, `image DIR pull NAME`, `image DIR remove AMI`.

use std::path::Path;
use std::time::Instant;

use haar_image::{BuildOptions, Catalogue, ImportOptions, Library, Progress, PullOptions, Recipe, Unit};

struct Lines {
    started: Instant,
    total: Option<u64>,
    shown: Option<u64>,
}

impl Progress for Lines {
    fn stage(&mut self, name: &str, unit: Unit, total: Option<u64>) {
        println!("{:7.2} s  {name} ({unit:?}, {total:?})", self.started.elapsed().as_secs_f64());
        (self.total, self.shown) = (total, None);
    }

    fn advance(&mut self, done: u64) {
        let tenth = self.total.map(|total| done * 10 / total.max(1));
        if tenth != self.shown {
            println!("{:7.2} s    {done}", self.started.elapsed().as_secs_f64());
            self.shown = tenth;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut progress = Lines { started: Instant::now(), total: None, shown: None };
    match words[..] {
        [dir, "list"] => {
            for image in Library::open(dir)?.list()? {
                println!("{}", serde_json::to_string_pretty(&image.manifest)?);
            }
        }
        [dir, "build", recipe] => {
            let recipe = Recipe::from_name(recipe)?;
            let image = Library::open(dir)?.build(recipe, &BuildOptions::default(), &mut progress)?;
            println!("{}", image.dir().display());
        }
        [dir, "import", file] => {
            let image =
                Library::open(dir)?.import(Path::new(file), &ImportOptions::default(), &mut progress)?;
            println!("{}", image.dir().display());
        }
        [dir, "pull", name] => {
            let options = PullOptions::default();
            let image = Library::open(dir)?.pull(&Catalogue::built_in(), name, &options, &mut progress)?;
            println!("{}", image.dir().display());
        }
        [dir, "remove", id] => Library::open(dir)?.remove(&id.parse()?)?,
        _ => return Err("usage: image DIR list|build RECIPE|import FILE|pull NAME|remove AMI".into()),
    }
    println!("{:7.2} s  done", progress.started.elapsed().as_secs_f64());
    Ok(())
}
