# `exp/<experiment>/<stage>` as a target, and once more with the slash that Tab completion adds: a rule of that very name,
# without an output, since a directory cannot be a target while the files inside it are made by rules.
for e in EXPERIMENTS.values():
    for target in e.targets:
        for slash in ("", "/"):

            rule:
                name:
                    f"{e.root}/{target}{slash}"
                input:
                    target_files(e.name, (target,)),
                message:
                    "{rule} is complete"

    for slash in ("", "/"):

        rule:
            name:
                f"{e.root}{slash}"
            input:
                target_files(e.name, ("report", "pack")),
            message:
                "{rule} is complete"
