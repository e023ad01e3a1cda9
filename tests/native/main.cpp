// Runs the tests of a native test program: all of them, or the ones named; --full: with all of their cases.
//   PROGRAM [--full] [NAME ...]
#include "check.h"

using namespace noisykernels::test;

int main(int argc, char** argv) {
  int ran = 0, named = 0;
  for (int i = 1; i < argc; ++i) std::strcmp(argv[i], "--full") == 0 ? void(g_full = true) : void(++named);
  for (const Test* t = Test::first; t != nullptr; t = t->next) {
    bool wanted = named == 0;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], t->name) == 0;
    if (!wanted) continue;
    const int before = g_failures;
    t->run();
    std::printf("%-24s %s\n", t->name, g_failures == before ? "ok" : "FAILED");
    std::fflush(stdout);
    ++ran;
  }
  if (ran == 0 || (named > 0 && ran != named)) return std::puts("no such test"), 2;
  return g_failures == 0 ? 0 : 1;
}
