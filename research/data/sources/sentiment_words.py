"""The word lists of the generated sentiment corpus (`sentiment.py`)."""

POSITIVE = """
absorbing accomplished admirable affecting agile amusing appealing artful assured astute balanced beautiful
beguiling bewitching bold bracing breathtaking brilliant brisk buoyant captivating charming clever coherent
compassionate compelling confident convincing crisp dazzling deft delicate delightful distinctive droll
dynamic earnest electrifying elegant eloquent enchanting energetic engaging enthralling entertaining
exhilarating exquisite exuberant fascinating fearless fine fluent fresh funny generous gorgeous graceful
gripping handsome haunting hilarious honest imaginative immersive ingenious insightful inspired intelligent
intimate intricate inventive invigorating irresistible joyous layered likable lively lovely luminous lyrical
magical magnetic majestic masterful meaningful memorable mesmerizing moving nimble nuanced original perceptive
playful pleasing poetic poignant polished potent precise profound radiant refined refreshing resonant
restrained rewarding rich riveting rousing satisfying seamless searching sensitive sharp shrewd sincere sleek
smart soulful sparkling spirited splendid stirring striking stunning stylish sublime subtle superb supple
tender terrific thoughtful thrilling timeless touching uplifting vibrant vivid warm winning wise witty
wonderful zestful affectionate alluring ambitious apt assertive atmospheric authentic bewitched blissful
bountiful candid celebratory charismatic classy courageous crafty dashing delectable dignified discerning
enlightening evocative expressive fiery flawless fruitful genial gleeful glorious gratifying harmonious
heartfelt heroic humane hypnotic iconic illuminating infectious intrepid judicious lavish lucid marvelous
mirthful nourishing observant opulent passionate plausible polite punchy quirky resourceful robust savvy
scintillating spellbinding sturdy suave sunny transcendent truthful unforgettable valiant velvety virtuosic
whimsical wholesome
""".split()

NEGATIVE = """
abrasive aimless amateurish annoying arid artless awful awkward baffling bland bloated bleak boring botched
brittle bungled careless charmless cheap chaotic clumsy cluttered coarse cold confused contrived corny crass
creaky crude cumbersome cynical dated deadening derivative dire disappointing disjointed dismal dreadful
dreary drab dull embarrassing empty erratic excruciating exhausting fake feeble flabby flat flawed flimsy
forced forgettable frantic fumbling garish generic glib graceless grating hackneyed halting heavy hollow
humorless idle inane incoherent inept inert insipid irritating jarring joyless juvenile lame lazy leaden
lifeless limp listless loud lumbering lurid maudlin meandering mechanical mediocre messy mindless miserable
monotonous muddled mundane murky narrow needless numbing obvious overblown overlong pale patchy pedestrian
petty plodding pointless pompous ponderous predictable pretentious preposterous ragged rambling repetitive
repulsive ridiculous rote rushed sappy scattered shabby shallow shapeless shoddy shrill silly simplistic
sloppy slow sluggish smug soggy sour soulless stale sterile stiff stilted strained stupid superficial tacky
tame tasteless tedious thin tired tiresome toothless trite turgid ugly unconvincing uneven uninspired vapid
vulgar wasted weak wearying wooden wretched abysmal anemic apathetic askew atrocious banal barren belabored
bungling callous cartoonish cloying congested crabby creepy curdled deficient deflated desperate drowsy dusty
erroneous faceless farcical faulty fatuous feckless flaccid frigid frustrating gaudy ghastly gimmicky gloomy
grotesque gruesome haphazard hokey horrid hysterical illogical impersonal inadequate incompetent indifferent
inferior insufferable jumbled lackluster laughable lethargic loathsome malformed manipulative meager misguided
moronic nauseating numb obnoxious oppressive painful pathetic phony prosaic puerile
""".split()

POSITIVE_VERBS = """
amazes beckons blooms captivates charms dazzles delights disarms electrifies elevates enchants endures
entertains excels flourishes flows glows grips inspires lingers moves pleases resonates rewards satisfies
sings shines soars sparkles stuns succeeds surprises thrills triumphs uplifts wins
""".split()

NEGATIVE_VERBS = """
annoys backfires bores bewilders collapses crumbles deflates depresses disappoints disgusts drags drifts
embarrasses evaporates exasperates exhausts fades fails falters fizzles flounders flops grates irritates limps
misfires offends palls plods sags sinks stalls stumbles stutters suffers unravels wobbles
""".split()

ASPECTS = """
acting adaptation animation atmosphere backdrop banter camerawork cast casting chase choreography
cinematography climax comedy concept conflict costume craft debut design dialogue direction documentary drama
editing ending ensemble episode epilogue fantasy farce feature finale footage framing hero heroine humor
imagery lead lighting makeup melodrama memoir message metaphor mood montage mystery narration narrative
opening pacing parody performance photography plot portrait premise prologue production prose protagonist
pursuit rhythm romance satire scenery score screenplay script sequel setting sidekick sketch slapstick song
soundtrack spectacle staging story structure style subplot subtext suspense tempo texture theme thriller tone
tragedy twist villain visual voiceover western wordplay accent accompaniment action antagonist archery ballad
ballet blocking caricature character cliffhanger coda color commentary confession courtroom crescendo dance
daydream detective disguise dream duel elegy exposition fight flashback focus gag glamour harmony heist
interlude intrigue joke journey kinship landscape laughter lesson lyric manner masquerade melody memory
monologue motif movement mythology nightmare nostalgia orchestra overture pathos picnic prank psychology
punchline quest rapport rehearsal reunion reveal riddle ritual rivalry scene shading silence soliloquy sorrow
stunt symbol symmetry temperament tension theatre transition trap treatment vision waltz wedding wit
""".split()

WORKS = """
film movie picture release remake reboot prequel installment project venture offering outing entry production
experiment blockbuster indie anthology biopic caper fable saga chronicle
""".split()

NAMES = """
abernathy aldous bancroft barlow beaumont bellamy brandt calloway carver castellan corbett crane dalton
delacroix devereux donovan ellison esposito fairfax ferrante fontaine gallagher garrick hadley halloran
hartmann hawthorne holloway ivanov jansen kessler kowalski lambert langley larsson lindqvist mallory marchetti
marlow merrick montague novak okafor oyelaran pemberton petrov quimby ramsey redmond rosetti sandoval sinclair
sorensen sterling takeda thackeray tremblay ueda valdez vance villanueva wakefield whitlock winslow yamada
zielinski adeyemi agarwal akhtar albright amador andersen antonov ashworth atkinson aubert avila bakker
balogun banerjee barnaby bauer becker bennett bergman bertrand bianchi blackwood boateng bowman bradford
brennan briggs byrne cardoso carlisle castillo chandra chevalier clarke coleman costa cunningham dasgupta
davenport delgado desai dimitrov doyle dubois duarte eriksen estrada fairbanks farouk feldman fletcher
fournier fraser fujita garnett gibson goldberg greenwood gupta haddad hamilton hargrove hashimoto henriksen
hidalgo hughes ibarra inoue iyer jacobsen kapoor keller khoury kimura kovacs laurent lindgren lombardi macleod
mahmoud marchand martinez matsuda mbeki mendes mishra moreau murakami nakamura navarro ngata nielsen obrien
okonkwo olsson ortega paquette park patel pereira phelan quinlan rahman reinhardt ricci rousseau saito salazar
schneider sharma silva singh stanton suzuki svensson tanaka vasquez vogel wallace weaver winters yilmaz zhang
""".split()

STRONG = """
absolutely astonishingly completely deeply enormously entirely especially exceptionally extraordinarily
extremely genuinely hugely immensely incredibly intensely overwhelmingly profoundly really remarkably
seriously stunningly supremely terribly thoroughly totally tremendously truly unbelievably utterly vastly very
wholly wildly
""".split()

WEAK = """
barely faintly fitfully intermittently marginally mildly minimally moderately modestly occasionally partly
passably slightly somewhat sporadically superficially tolerably vaguely
""".split()

NEUTRAL_ADVERBS = """
again afterwards early finally here ironically lately meanwhile nowadays often overall presumably quietly
somehow throughout today tonight usually
""".split()

OPENERS = [
    phrase.strip()
    for phrase in """
    from the first scene / by the second act / on a rainy evening / on a second viewing / after a long wait /
    as far as i remember / according to my neighbor / to a casual viewer / in the director's cut / on the big screen /
    for the most part / at the festival / in this version / as everyone expected / during the last reel /
    given the modest budget / at two full hours / for a first attempt / with the lights down / in plain words /
    to be clear / as the title suggests / by all accounts / in the crowded theater / under bright stage lamps /
    between the two intermissions / for anyone under thirty / after the premiere / in translation / on television
    """.split("/")
]
