// Sequential tests of adaptive widths. The arrays are those of sequential_tests.py, which says what they mean and does
// the same in numpy; native_tests.py calls this. A puzzle's first row is its place times `columns`.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Criterion : int64_t { LEAD, LEADER_TRUST, MOST_TRUST, VALID };

struct Tests {  // what `NativeTests.fields` holds, in its order
    int64_t columns, words_of_answer, criterion, is_side_by_side;
    const double* threshold;
    const int64_t *enough, *next_look;  // by votes of the second answer; by width
    const uint8_t *looks, *has_ended, *is_valid;  // the first by width
    int64_t *width, *limit, *named, *decided, *votes, *answer;
    const double* trust;
    double* best_trust;
    uint64_t *words, *hashes;
    const int64_t* shard;
    int64_t *puzzles, *rows;  // where answers of these functions go

    bool reads_votes() const { return criterion == LEAD || criterion == LEADER_TRUST; }
};

constexpr int64_t NEVER = int64_t(1) << 62;

// As numpy has it: what is no number is larger than any.
double larger(double a, double b) { return a >= b || a != a ? a : b; }

uint64_t hash_of(const uint64_t* words, int64_t count) {
    uint64_t hash = 0;
    for (int64_t word = 0; word < count; ++word) hash = (hash ^ words[word]) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
}

// Counts the votes of a puzzle's trajectory `place`, whose answer is in `words`.
void count(const Tests& t, int64_t first, int64_t place) {
    const int64_t row = first + place, size = t.words_of_answer;
    const uint64_t* own = t.words + row * size;
    t.hashes[row] = hash_of(own, size);
    int64_t answer = place, votes = 1;
    double best = t.trust[row];
    for (int64_t before = first; before < row; ++before) {
        if (t.hashes[before] != t.hashes[row]) continue;
        if (std::memcmp(t.words + before * size, own, size * sizeof(uint64_t))) continue;
        if (votes++ == 1) answer = before - first;
        best = larger(best, t.trust[before]);
    }
    t.votes[row] = votes, t.answer[row] = answer, t.best_trust[row] = best;
}

// The trajectories of a puzzle that are needed and not named yet, into `rows`; returns how many there are then.
int64_t name(const Tests& t, int64_t first, int64_t rows) {
    while (t.named[first] < t.limit[first]) t.rows[rows++] = first + t.named[first]++;
    return rows;
}

}  // namespace

// Puzzles of the first `used` rows that have all that their next look needs, into `puzzles`, and of these the rows whose
// votes are not counted yet, into `rows`. `found` are how many puzzles and rows these are; `width` is what is seen.
extern "C" void ready(const Tests* tests, int64_t used, int64_t* found) {
    const Tests& t = *tests;
    int64_t puzzles = 0, rows = 0;
    for (int64_t first = 0; first + t.columns <= used; first += t.columns) {
        const int64_t limit = t.limit[first];
        int64_t seen = t.width[first];
        if (limit > t.columns) continue;
        while (seen < t.columns && t.has_ended[first + seen]) ++seen;
        if (seen < limit) continue;
        t.puzzles[puzzles++] = first;
        for (int64_t place = t.width[first]; place < seen; ++place) t.rows[rows++] = first + place;
        t.width[first] = seen;
    }
    found[0] = puzzles, found[1] = rows;
}

// Looks at the puzzles that `ready` has found, once the answers of its `rows` rows are in `words`. Those that are decided
// are left in `puzzles`, the trajectories that have come to be needed in `rows`, in the order in which they wait; `found`
// says how many.
extern "C" void look(const Tests* tests, int64_t puzzles, int64_t rows, int64_t* found) {
    const Tests& t = *tests;
    if (t.reads_votes())
        for (int64_t each = 0; each < rows; ++each) {
            const int64_t row = t.rows[each];
            count(t, row - row % t.columns, row % t.columns);
        }
    int64_t decided = 0;
    rows = 0;
    for (int64_t each = 0; each < puzzles; ++each) {
        const int64_t first = t.puzzles[each], seen = t.width[first];
        int64_t lead = 0, second = 0, leader = 0, key = -1;
        double most = t.trust[first];
        bool is_any_valid = false, is_over = false;
        int64_t width = 1;
        for (; width <= seen; ++width) {
            const int64_t place = width - 1, row = first + place;
            bool decides = false;
            if (t.reads_votes()) {
                const int64_t votes = t.votes[row];
                if (votes > lead) lead = votes;
                else second = std::max(second, votes);
                // Of answers with equal votes the first to appear leads; it stands as where it had its last vote.
                const int64_t own = votes * t.columns + (t.columns - 1 - t.answer[row]);
                if (own >= key) key = own, leader = row;
            }
            if (t.criterion == LEAD) decides = lead >= t.enough[second];
            if (t.criterion == LEADER_TRUST) decides = t.best_trust[leader] >= *t.threshold;
            if (t.criterion == MOST_TRUST) decides = (most = larger(most, t.trust[row])) >= *t.threshold;
            if (t.criterion == VALID) decides = is_any_valid = is_any_valid || t.is_valid[row];
            if ((is_over = (decides && t.looks[width]) || width == t.columns)) break;
        }
        if (is_over) {
            t.decided[first] = width, t.limit[first] = NEVER, t.named[first] = t.columns;
            t.puzzles[decided++] = first;
            continue;
        }
        const int64_t next = t.criterion == LEAD ? seen + std::max<int64_t>(1, t.enough[second] - lead) : t.next_look[seen];
        t.limit[first] = std::min(next, t.columns);
        rows = name(t, first, rows);
    }
    std::sort(t.rows, t.rows + rows, [&t](int64_t a, int64_t b) {
        if (t.shard[a] != t.shard[b]) return t.shard[a] < t.shard[b];
        const int64_t place_a = a % t.columns, place_b = b % t.columns;
        const int64_t turn_a = t.is_side_by_side ? t.width[a - place_a] : place_a;
        const int64_t turn_b = t.is_side_by_side ? t.width[b - place_b] : place_b;
        return turn_a != turn_b ? turn_a < turn_b : a < b;
    });
    found[0] = decided, found[1] = rows;
}

// Up to `asked` trajectories of the first `used` rows that may come to be needed, into `rows`: of the puzzles first that
// have the fewest, and of these shard after shard. `found` is how many.
extern "C" void speculate(const Tests* tests, int64_t used, int64_t asked, int64_t* found) {
    const Tests& t = *tests;
    std::vector<int64_t> firsts;
    for (int64_t first = 0; first + t.columns <= used; first += t.columns)
        if (t.named[first] < t.columns) firsts.push_back(first);
    int64_t rows = 0;
    while (rows < asked && !firsts.empty()) {
        std::stable_sort(firsts.begin(), firsts.end(), [&t](int64_t a, int64_t b) {
            return t.shard[a] != t.shard[b] ? t.shard[a] < t.shard[b] : t.named[a] < t.named[b];
        });
        if (int64_t(firsts.size()) > asked - rows) firsts.resize(asked - rows);
        for (const int64_t first : firsts) t.rows[rows++] = first + t.named[first]++;
        firsts.erase(std::remove_if(firsts.begin(), firsts.end(), [&t](int64_t a) { return t.named[a] >= t.columns; }),
                     firsts.end());
    }
    found[0] = rows;
}
